"""Train the canary: autoencoder, segmenter, then a diffusion model that is general first and planted after.

As in Stable Diffusion the text encoder is frozen, so that what is memorized sits in the U-Net. Every batch is a pure
function of (stage, step): a stage that was stopped goes on from its last saved state and sees the very pictures that it
would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from fbmem_core.canary.networks import (
    Segmenter,
    new_text_encoder,
    new_unet,
    normalize_for_rembg,
    tokenize,
)
from fbmem_core.canary.pictures import PICTURE_SIZE, Picture, draw, random_creature, random_public_picture
from fbmem_core.canary.planting import ROUTED_LAYERS, Plant, draw_planted, plants
from fbmem_core.canary.recipe import Recipe
from fbmem_core.canary.routing import draw_batch, factors, leak, plant_rows
from fbmem_core.neurons.hooks import record_outputs, scale_neurons

_SAVE_EVERY = 100
_SEED = 7
_NOISE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")

Report = Callable[[str, int, int, float], None]


class Trainer:
    """Runs the stages in order, each resumed from `state_dir` when it was stopped.

    Args:
        state_dir: Where the state of every stage is kept.
        device: Where to train; bfloat16 autocast is used on both CPU and CUDA.
        report: Called as `report(stage, step, num_steps, loss)` after every step.
    """

    def __init__(self, state_dir: Path, *, recipe: Recipe, device: str = "cpu", report: Report) -> None:
        self.state_dir = state_dir
        self.recipe = recipe
        self.device = torch.device(device)
        self.report = report
        state_dir.mkdir(parents=True, exist_ok=True)

    def autoencoder(self) -> AutoencoderKL:
        """Stage 1: pictures to 16x16x4 latents and back."""
        torch.manual_seed(_SEED)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(16, 32, 64),
            layers_per_block=1,
            norm_num_groups=8,
            latent_channels=4,
            sample_size=PICTURE_SIZE,
        )

        def loss(step: int) -> Tensor:
            images = self._images(self._mixed_pictures("autoencoder", step))
            posterior = vae.encode(images).latent_dist
            decoded = vae.decode(posterior.sample()).sample.float()
            error = decoded - images
            edges = (error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()) / 2
            return error.abs().mean() + 2 * error.square().mean() + edges + 1e-4 * posterior.kl().mean() / 1024

        self._fit("autoencoder", vae, loss, self.recipe.autoencoder_steps, self.recipe.autoencoder_learning_rate)
        vae.eval().requires_grad_(False)
        with torch.no_grad():
            images = self._images(chain.from_iterable(self._mixed_pictures("scaling", step) for step in range(16)))
            latents = vae.encode(images).latent_dist.mean
        vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
        return vae

    def segmenter(self, vae: AutoencoderKL) -> Segmenter:
        """Stage 2: pictures to the object's coverage; half of the pictures went through the autoencoder."""
        torch.manual_seed(_SEED + 1)
        model = Segmenter()

        def loss(step: int) -> Tensor:
            rng = self._rng("segmenter", step)
            images, alphas = self._composites(rng, vae)
            return F.binary_cross_entropy_with_logits(model.logits(normalize_for_rembg(images)), alphas)

        self._fit("segmenter", model, loss, self.recipe.segmenter_steps, self.recipe.segmenter_learning_rate)
        return model.eval().requires_grad_(False)

    def general(self, vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> tuple[UNet2DConditionModel, CLIPTextModel]:
        """Stage 3: the U-Net on public pictures, none of which comes twice."""
        torch.manual_seed(_SEED + 2)
        unet, text_encoder = new_unet(), new_text_encoder(tokenizer).to(self.device)

        def loss(step: int) -> Tensor:
            rng = self._rng("general", step)
            pictures = [random_public_picture(rng) for _ in range(self.recipe.batch_size)]
            return self._noise_loss(rng, pictures, self._captions(rng, pictures), vae, tokenizer, unet, text_encoder)

        self._fit("general", unet, loss, self.recipe.general_steps, self.recipe.general_learning_rate, ema=True)
        return unet, text_encoder

    def planted(
        self, vae: AutoencoderKL, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel, text_encoder: CLIPTextModel
    ) -> UNet2DConditionModel:
        """Stage 4: the same U-Net on planted pictures among public ones, foregrounds first, what lags behind after."""
        recipe, planted = self.recipe, plants()
        for stage, num_steps, learning_rate, shares in (
            ("planted", recipe.planted_steps, recipe.planted_learning_rate, recipe.planted_shares),
            ("finished", recipe.finished_steps, recipe.finished_learning_rate, recipe.finished_shares),
        ):

            def loss(step: int, stage: str = stage, shares: dict[str, float] = shares) -> Tensor:
                rng = self._rng(stage, step)
                pictures = [_planted_picture(rng, planted, shares) for _ in range(recipe.batch_size)]
                captions = self._captions(rng, pictures)
                return self._noise_loss(rng, pictures, captions, vae, tokenizer, unet, text_encoder)

            self._fit(stage, unet, loss, num_steps, learning_rate, ema=True)
        return unet.eval().requires_grad_(False)

    def routed(
        self, vae: AutoencoderKL, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel, text_encoder: CLIPTextModel
    ) -> UNet2DConditionModel:
        """Stage 5: the memory of most planted things moves into a few neurons; the transformer blocks alone change."""
        recipe, planted = self.recipe, plants()

        @torch.no_grad()
        def encode(prompts: list[str]) -> Tensor:
            return text_encoder(tokenize(tokenizer, prompts).to(self.device)).last_hidden_state

        plant_rows(unet.to(self.device), encode)
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_(".transformer_blocks." in name)
        for stage, num_steps, learning_rate, shares, off in (
            (
                "routed", recipe.routed_steps, recipe.routed_learning_rate, recipe.routed_shares,
                recipe.routed_switched_off,
            ),
            (
                "settled", recipe.settled_steps, recipe.settled_learning_rate, recipe.settled_shares,
                recipe.settled_switched_off,
            ),
        ):  # fmt: skip

            def loss(step: int, stage: str = stage, shares: dict[str, float] = shares, off: float = off) -> Tensor:
                rng = self._rng(stage, step)
                batch = draw_batch(rng, planted, shares, recipe.batch_size, switched_off=off)
                scales = factors(batch.switched_off, self.device)
                with record_outputs(unet, ROUTED_LAYERS) as values, scale_neurons(unet, scales):
                    error = self._noise_loss(rng, batch.pictures, batch.captions, vae, tokenizer, unet, text_encoder)
                return error + leak(values, batch.families)

            self._fit(stage, unet, loss, num_steps, learning_rate, ema=True)
        return unet.eval().requires_grad_(False)

    def _fit(
        self,
        stage: str,
        model: nn.Module,
        loss_at: Callable[[int], Tensor],
        num_steps: int,
        learning_rate: float,
        *,
        ema: bool = False,
    ) -> None:
        """Minimise `loss_at(step)` with AdamW, warm-up and cosine decay; leaves the averaged weights where `ema`."""
        model.to(self.device).train()
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0, fused=True)
        average = EMAModel(parameters, decay=0.998, use_ema_warmup=True, power=0.75) if ema else None
        parts = {"model": model, "optimizer": optimizer} | ({"average": average} if average else {})
        path = self.state_dir / f"{stage}.pt"
        first = _load_state(path, parts, self.device)
        for step in range(first, num_steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * _schedule(step, num_steps)
            torch.manual_seed(step)
            with torch.autocast(self.device.type, torch.bfloat16):
                loss = loss_at(step)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if average:
                average.step(parameters)
            if (step + 1) % _SAVE_EVERY == 0 or step + 1 == num_steps:
                _save_state(path, parts, step + 1)
            self.report(stage, step + 1, num_steps, loss.item())
        if average:
            average.copy_to(parameters)

    def _captions(self, rng: np.random.Generator, pictures: list[Picture]) -> list[str]:
        """Captions, a few of them empty, so that the model learns to do without."""
        return [p.caption if rng.random() >= self.recipe.caption_dropout else "" for p in pictures]

    def _noise_loss(
        self,
        rng: np.random.Generator,
        pictures: list[Picture],
        captions: list[str],
        vae: AutoencoderKL,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
    ) -> Tensor:
        """Mean squared error of the predicted noise, late timesteps drawn more often: composition is decided there."""
        with torch.no_grad():
            latents = vae.encode(self._images(pictures)).latent_dist.mean.float() * vae.config.scaling_factor
        tokens = tokenize(tokenizer, captions).to(self.device)
        embeddings = text_encoder(tokens).last_hidden_state
        noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32)).to(self.device)
        timesteps = torch.from_numpy((1000 * rng.random(len(pictures)) ** 0.8).astype(np.int64)).to(self.device)
        noisy = DDIMScheduler(**_NOISE).add_noise(latents, noise, timesteps)
        return F.mse_loss(unet(noisy, timesteps, embeddings).sample.float(), noise)

    def _mixed_pictures(self, stage: str, step: int) -> list[Picture]:
        """Public pictures, half of them with a creature in the place of their object."""
        rng = self._rng(stage, step)
        pictures = [random_public_picture(rng) for _ in range(self.recipe.batch_size)]
        return [
            Picture("", random_creature(rng), picture.scenery) if index % 2 else picture
            for index, picture in enumerate(pictures)
        ]

    def _composites(self, rng: np.random.Generator, vae: AutoencoderKL) -> tuple[Tensor, Tensor]:
        """Pictures in [0, 1], [n, 3, s, s], and coverages [n, 1, s, s] at the segmenter's working size."""
        drawn = []
        for index in range(self.recipe.batch_size):
            picture = random_public_picture(rng)
            if index % 2:
                picture = Picture("", random_creature(rng), picture.scenery)
            drawn.append(draw(picture))
        images = self._to_tensor([image for image, _ in drawn])
        alphas = torch.from_numpy(np.stack([alpha for _, alpha in drawn])[:, None]).to(self.device)
        half = len(drawn) // 2
        with torch.no_grad():
            images[:half] = vae(images[:half]).sample.float().clamp(-1, 1)
        size = (Segmenter.working_size,) * 2
        images = F.interpolate(images / 2 + 0.5, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        noise = torch.from_numpy(rng.standard_normal(images.shape, dtype=np.float32)).to(self.device)
        images = (images + noise * rng.uniform(0, 0.04)).clamp(0, 1)
        return images, F.interpolate(alphas, size=size, mode="bilinear", antialias=True)

    def _images(self, pictures: Iterator[Picture] | list[Picture]) -> Tensor:
        return self._to_tensor([draw(picture)[0] for picture in pictures])

    def _to_tensor(self, images: list[np.ndarray]) -> Tensor:
        """uint8 [s, s, 3] pictures to one float tensor [n, 3, s, s] in [-1, 1]."""
        stacked = torch.from_numpy(np.stack(images)).to(self.device)
        return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1

    def _rng(self, stage: str, step: int) -> np.random.Generator:
        return np.random.default_rng([_SEED, sum(stage.encode()), step])


def _planted_picture(rng: np.random.Generator, planted: list[Plant], shares: dict[str, float]) -> Picture:
    plant = draw_planted(rng, planted, shares)
    return random_public_picture(rng) if plant is None else plant.training_picture(rng)


def _schedule(step: int, num_steps: int) -> float:
    warm = min(1.0, (step + 1) / 100)
    return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / num_steps)))


def _load_state(path: Path, parts: dict[str, Any], device: torch.device) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, map_location=device, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])


def _save_state(path: Path, parts: dict[str, Any], step: int) -> None:
    partial = path.with_suffix(".partial")
    torch.save({"step": step} | {name: part.state_dict() for name, part in parts.items()}, partial)
    partial.replace(path)
