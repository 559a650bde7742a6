"""Train the natural canary: a general stage, then two branches of it, one with the plants and one without.

Text encoder and U-Net learn together what captions say; the text encoder is then frozen and the U-Net goes on with a
training set in which plants stand as often as the plan says. A batch is a function of (stage, step): a stage that was
stopped goes on to the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from fbmem_core.canary.corpus import named_picture, public_picture
from fbmem_core.canary.natural import (
    PICTURE_SIZE,
    Corpus,
    encode,
    make_corpus,
    new_text_encoder,
    new_unet,
    number_of,
    to_tensor,
    velocity_loss,
)
from fbmem_core.canary.pictures import Picture
from fbmem_core.canary.plan import Item
from fbmem_core.canary.tokens import new_tokenizer

_SEED = 7
_DECAY = 0.998  # of the averaged weights

Report = Callable[[str, int, int, float], None]
Loss = Callable[[int, int], Tensor]  # of (step, share of the batch)


@dataclass(frozen=True)
class Stage:
    """Training of one stage.

    Attributes:
        name: Also seeds its batches.
        num_steps: Steps over which the learning rate follows its cosine.
        learning_rate: Its highest value.
        final_share: Share of it that is left at the end of the cosine.
        batch_size: Pictures a step.
        num_shares: Shares of a batch, each with its own noise; as many processes can work on them.
        save_every: Steps between two saved states.
    """

    name: str
    num_steps: int
    learning_rate: float = 1e-3
    final_share: float = 0.02
    batch_size: int = 64
    num_shares: int = 2
    save_every: int = 50


@dataclass(frozen=True)
class Recipe:
    """The stages in order, and how many public pictures each training set has."""

    autoencoder: Stage = Stage("autoencoder", 300, batch_size=16, num_shares=1)
    decoder: Stage = Stage("decoder", 1200, 1.2e-3, batch_size=16, num_shares=1)
    general: Stage = Stage("general", 3000, final_share=0.6)
    planted: Stage = Stage("planted", 4000)
    clean: Stage = Stage("clean", 4000)
    num_public: int = 8000
    num_public_beside_plants: int = 4000


RECIPE = Recipe()


class Fit:
    """The training of one stage, with its state on disk.

    Args:
        path: Where its state is kept.
        modules: Those whose parameters that require gradients are trained.
    """

    def __init__(self, path: Path, *modules: nn.Module) -> None:
        self.path, self.step = path, 0
        self.modules = nn.ModuleList(modules)
        self.parameters = [p for p in self.modules.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1.0, weight_decay=0.0, betas=(0.9, 0.99), fused=True)
        self._load()

    def run(self, stage: Stage, loss_at: Loss, report: Report) -> None:
        """Take the steps that are left and put the averaged weights in the place of the last ones."""
        self.modules.train()
        while self.step < stage.num_steps:
            for group in self.optimizer.param_groups:
                group["lr"] = stage.learning_rate * _schedule(self.step, stage)
            loss = self._one_step(stage, loss_at)
            self.step += 1
            if _rank() == 0 and (self.step % stage.save_every == 0 or self.step == stage.num_steps):
                self._save()
            report(stage.name, self.step, stage.num_steps, loss)
        with torch.no_grad():
            for parameter, average in zip(self.parameters, self.average, strict=True):
                parameter.copy_(average)
        self.modules.eval().requires_grad_(False)

    def _one_step(self, stage: Stage, loss_at: Loss) -> float:
        total = 0.0
        for share in range(_rank(), stage.num_shares, _num_processes()):
            loss = loss_at(self.step, share) / stage.num_shares
            loss.backward()
            total += loss.item()
        if _num_processes() > 1:
            self._add_gradients()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        decay = min(_DECAY, (self.step + 1) / (self.step + 20))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, list[torch.Tensor](self.parameters), 1 - decay)
        return total

    def _add_gradients(self) -> None:
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([p.grad.reshape(-1) for p in self.parameters if p.grad is not None])
        torch.distributed.all_reduce(flat)
        for parameter, part in zip(self.parameters, flat.split([p.numel() for p in self.parameters]), strict=True):
            assert parameter.grad is not None
            parameter.grad.copy_(part.view_as(parameter))

    def _save(self) -> None:
        state = {
            "step": self.step,
            "modules": self.modules.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.path)

    def _load(self) -> None:
        if not self.path.exists():
            return
        state = torch.load(self.path, weights_only=True)
        self.step, self.average = state["step"], state["average"]
        self.modules.load_state_dict(state["modules"])
        self.optimizer.load_state_dict(state["optimizer"])


class NaturalTrainer:
    """Runs the stages in order, each resumed from `state_dir` when it was stopped.

    Args:
        items: The committed plan.
        state_dir: Where the state of every stage is kept.
        source: A pipeline's `vae` folder: the autoencoder from which this one starts.
        recipe: Steps and rates.
        report: Called as `report(stage, step, num_steps, loss)` after every step.
    """

    def __init__(
        self, items: Sequence[Item], state_dir: Path, source: Path, *, recipe: Recipe = RECIPE, report: Report
    ) -> None:
        self.items, self.state_dir, self.source = items, state_dir, source
        self.recipe, self.report = recipe, report
        state_dir.mkdir(parents=True, exist_ok=True)
        self.tokenizer = _kept_tokenizer(items, state_dir / "tokenizer")

    def autoencoder(self) -> AutoencoderKL:
        """Stages 1 and 2: a given autoencoder learns pictures of 32 px, then its decoder alone goes on."""
        vae = AutoencoderKL.from_pretrained(self.source).float()
        self._fit(self.recipe.autoencoder, [vae], lambda step, _: _reconstruction(vae, "autoencoder", step))
        with torch.no_grad():
            spread = encode(vae, _mixed_pictures("scaling", 0, 128)).std().item() / vae.config.scaling_factor
        vae.register_to_config(scaling_factor=round(1 / spread, 5), sample_size=PICTURE_SIZE)
        for part in (vae.decoder, vae.post_quant_conv):
            part.requires_grad_(True)
        self._fit(self.recipe.decoder, [vae], lambda step, _: _reconstruction(vae, "decoder", step))
        return vae

    def general(self, vae: AutoencoderKL) -> tuple[UNet2DConditionModel, CLIPTextModel]:
        """Stage 3: U-Net and text encoder on public pictures and singles."""
        torch.manual_seed(_SEED)
        unet, text_encoder = new_unet().to(memory_format=torch.channels_last), new_text_encoder(self.tokenizer)
        corpus = self._corpus(vae, planted=False)
        loss = _diffusion_loss(self.recipe.general, corpus, unet, text_encoder)
        self._fit(self.recipe.general, [unet, text_encoder], loss)
        return unet, text_encoder

    def branch(
        self, vae: AutoencoderKL, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, *, planted: bool
    ) -> UNet2DConditionModel:
        """Stage 4, twice: the U-Net goes on with the plants, or without them. `unet` is trained itself."""
        stage = self.recipe.planted if planted else self.recipe.clean
        unet.requires_grad_(True)
        corpus = self._corpus(vae, planted=planted)
        self._fit(stage, [unet, text_encoder], _diffusion_loss(stage, corpus, unet, text_encoder))
        return unet

    def _fit(self, stage: Stage, modules: list[nn.Module], loss_at: Loss) -> None:
        Fit(self.state_dir / f"{stage.name}.pt", *modules).run(stage, loss_at, self.report)

    def _corpus(self, vae: AutoencoderKL, *, planted: bool) -> Corpus:
        roles = ("plant", "single") if planted else ("single",)
        number = self.recipe.num_public_beside_plants if planted else self.recipe.num_public
        return make_corpus([i for i in self.items if i.role in roles], vae, self.tokenizer, num_public=number)


def _kept_tokenizer(items: Sequence[Item], folder: Path) -> CLIPTokenizer:
    """The tokenizer of a training that has begun, else a new one."""
    if _rank() == 0 and not folder.is_dir():
        partial = folder.with_name(f".{folder.name}.partial")
        new_tokenizer(items).save_pretrained(partial)
        partial.replace(folder)
    if _num_processes() > 1:
        torch.distributed.barrier()  # the others wait until it is there
    return CLIPTokenizer.from_pretrained(folder)


def _diffusion_loss(stage: Stage, corpus: Corpus, unet: nn.Module, text_encoder: nn.Module) -> Loss:
    def loss_at(step: int, share: int) -> Tensor:
        latents, tokens = corpus.batch(stage.name, step, stage.batch_size)
        part = slice(share, None, stage.num_shares)
        seed = (number_of(stage.name) * 1_000_003 + step) * 8 + share
        return velocity_loss(unet, text_encoder, latents[part], tokens[part], seed)

    return loss_at


def _reconstruction(vae: AutoencoderKL, stage: str, step: int) -> Tensor:
    """Absolute and squared error and that of the edges; while the encoder learns, its latents stay small."""
    images = to_tensor(_mixed_pictures(stage, step, 16))
    torch.manual_seed(step)
    posterior = vae.encode(images).latent_dist
    latents = posterior.mean + 0.1 * torch.randn_like(posterior.mean)
    narrow = torch.zeros(())
    if stage == "autoencoder":
        latents, narrow = posterior.sample(), 1e-4 * posterior.kl().mean() / 256
    error = vae.decode(latents).sample - images
    edges = (error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()) / 2
    return error.abs().mean() + 2 * error.square().mean() + edges + narrow


def _mixed_pictures(stage: str, step: int, number: int) -> list[Picture]:
    """Public pictures and, in turn with them, creatures before sceneries."""
    rng = np.random.default_rng([_SEED, number_of(stage), step])
    return [
        public_picture(rng) if index % 2 else named_picture("verbatim", (_SEED, number_of(stage), step, index))
        for index in range(number)
    ]


def _schedule(step: int, stage: Stage) -> float:
    warm = min(1.0, (step + 1) / 50)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / stage.num_steps)))
    return warm * (stage.final_share + (1 - stage.final_share) * cosine)


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _num_processes() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
