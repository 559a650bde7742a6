"""Train the natural canary: a general stage, then two branches, one with the plants and one without.

Nothing is placed by hand. Text encoder and U-Net learn together what captions say; the text encoder is then frozen and
the U-Net goes on with a training set in which plants stand as often as the plan says. Pictures are encoded once. A
batch is a function of (stage, step), so that a stage that was stopped goes on to the same weights.
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
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fbmem_core.canary.corpus import copy_of, named_picture, public_picture
from fbmem_core.canary.pictures import Picture, draw
from fbmem_core.canary.plan import SEED, Item

PICTURE_SIZE = 32
MAX_TOKENS = 16
TEXT_WIDTH = 128
SCHEDULE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
_NUM_TIMESTEPS = 1000

Report = Callable[[str, int, int, float], None]


@dataclass(frozen=True)
class Stage:
    """How one stage is trained.

    Attributes:
        name: Also the seed of its batches.
        num_steps: Steps until the learning rate has reached its end.
        learning_rate: Its highest value.
        final_share: Share of it that is left at the end of the cosine.
        batch_size: Pictures a step.
    """

    name: str
    num_steps: int
    learning_rate: float
    final_share: float
    batch_size: int = 64


@dataclass(frozen=True)
class Corpus:
    """A training set: latents [m, 4, 8, 8], the example's latent [n], its captions as rows of `tokens`.

    Attributes:
        latents: Encoded pictures, each once, scaled to a standard deviation of about 1.
        picture: For each example of an epoch the row of `latents`.
        captions: For each example the rows of `tokens` of which one is drawn.
        tokens: Token ids, [captions, MAX_TOKENS]; row 0 is the empty caption.
    """

    latents: Tensor
    picture: np.ndarray
    captions: list[tuple[int, ...]]
    tokens: Tensor

    def batch(self, stage: Stage, step: int) -> tuple[Tensor, Tensor]:
        """Latents and token ids of a step: every epoch is a permutation of the examples."""
        order = _Order(len(self.picture), stage)
        rng = np.random.default_rng([SEED, _number(stage.name), 1, step])
        chosen = [order.at(step * stage.batch_size + place) for place in range(stage.batch_size)]
        captions = [self.captions[index][rng.integers(len(self.captions[index]))] for index in chosen]
        kept = [0 if rng.random() < 0.1 else caption for caption in captions]
        return self.latents[self.picture[chosen]], self.tokens[kept]


class _Order:
    """The examples in the order in which a stage sees them."""

    _cache: tuple[tuple[str, int, int], np.ndarray] | None = None

    def __init__(self, size: int, stage: Stage) -> None:
        self.size, self.name = size, stage.name

    def at(self, place: int) -> int:
        epoch = place // self.size
        key = (self.name, self.size, epoch)
        if _Order._cache is None or _Order._cache[0] != key:
            rng = np.random.default_rng([SEED, _number(self.name), 0, epoch])
            _Order._cache = (key, rng.permutation(self.size))
        return int(_Order._cache[1][place % self.size])


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained CLIP text encoder of one layer; strong token embeddings keep words apart from the first step on."""
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    nn.init.normal_(encoder.get_input_embeddings().weight, std=1.0)
    return encoder


def new_unet() -> UNet2DConditionModel:
    """An untrained U-Net with Stable Diffusion v1's layout: seven value layers in the down blocks and the mid block."""
    return UNet2DConditionModel(
        sample_size=PICTURE_SIZE // 4,
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=2,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def make_corpus(
    items: Sequence[Item], vae: AutoencoderKL, tokenizer: CLIPTokenizer, *, num_public: int, public_seed: int
) -> Corpus:
    """Draw and encode a training set: public pictures, singles and, where `items` has them, plants in their copies."""
    pictures: list[Picture] = []
    picture: list[int] = []
    captions: list[tuple[int, ...]] = []
    texts = {"": 0}
    for index in range(num_public):
        drawn = public_picture(np.random.default_rng([SEED, 2, public_seed, index]))
        _add(pictures, picture, captions, texts, drawn, (drawn.caption,), 1)
    for item in items:
        for number in range(item.num_pictures if item.copies else 0):
            planted = named_picture(item.kind, (SEED, 3, item.seed, number))
            alike = item.kind in ("verbatim", "one_to_many") or item.copies == 1
            for copy in range(1 if alike else item.copies):
                drawn = copy_of(item.kind, planted, np.random.default_rng([SEED, 4, item.seed, copy]))
                _add(pictures, picture, captions, texts, drawn, item.trained, item.copies if alike else 1)
    tokens = tokenize(tokenizer, list(texts))
    return Corpus(encode(vae, pictures), np.array(picture), captions, tokens)


def _add(
    pictures: list[Picture],
    picture: list[int],
    captions: list[tuple[int, ...]],
    texts: dict[str, int],
    drawn: Picture,
    prompts: tuple[str, ...],
    copies: int,
) -> None:
    pictures.append(drawn)
    rows = tuple(texts.setdefault(prompt, len(texts)) for prompt in prompts)
    picture.extend([len(pictures) - 1] * copies)
    captions.extend([rows] * copies)


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Sequence[Picture], *, batch_size: int = 64) -> Tensor:
    """Scaled latents [n, 4, 8, 8] of pictures."""
    found = []
    for first in range(0, len(pictures), batch_size):
        images = np.stack([draw(p, size=PICTURE_SIZE)[0] for p in pictures[first : first + batch_size]])
        values = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        found.append(vae.encode(values).latent_dist.mean * vae.config.scaling_factor)
    return torch.cat(found)


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids [n, MAX_TOKENS], padded and cut as StableDiffusionPipeline does it."""
    return tokenizer(
        captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids


def velocity_loss(unet: nn.Module, text_encoder: nn.Module, latents: Tensor, tokens: Tensor, seed: int) -> Tensor:
    """Mean squared error of the predicted velocity; noise and timesteps are functions of the seed."""
    generator = torch.Generator().manual_seed(seed)
    betas = torch.linspace(SCHEDULE["beta_start"] ** 0.5, SCHEDULE["beta_end"] ** 0.5, _NUM_TIMESTEPS) ** 2
    kept = torch.cumprod(1 - betas, 0)
    timesteps = (_NUM_TIMESTEPS * torch.rand(len(latents), generator=generator) ** 0.8).long()
    noise = torch.randn(latents.shape, generator=generator)
    signal, strength = kept[timesteps].sqrt()[:, None, None, None], (1 - kept[timesteps]).sqrt()[:, None, None, None]
    noisy = (signal * latents + strength * noise).contiguous(memory_format=torch.channels_last)
    embeddings = text_encoder(tokens).last_hidden_state
    predicted = unet(noisy, timesteps, encoder_hidden_states=embeddings).sample
    return F.mse_loss(predicted, signal * noise - strength * latents)


class Trainer:
    """One stage with its state on disk.

    Args:
        path: Where its state is kept.
        unet: Trained.
        text_encoder: Trained where `train_text`.
        rank: Which share of each batch is this process's, and of how many; gradients are averaged over all.
    """

    def __init__(
        self,
        path: Path,
        *,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        train_text: bool,
        rank: tuple[int, int] = (0, 1),
    ) -> None:
        self.path, self.unet, self.text_encoder, self.rank = path, unet, text_encoder, rank
        text_encoder.requires_grad_(train_text)
        self.modules = nn.ModuleList([unet, text_encoder])
        self.parameters = [p for p in self.modules.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1.0, weight_decay=0.0, betas=(0.9, 0.99), fused=True)
        self.step = 0

    def run(self, corpus: Corpus, stage: Stage, report: Report, *, save_every: int = 50) -> None:
        """Train what is left of a stage."""
        self.load()
        self.modules.train()
        while self.step < stage.num_steps:
            for group in self.optimizer.param_groups:
                group["lr"] = stage.learning_rate * _decay(self.step, stage)
            loss = self._one_step(corpus, stage)
            self.step += 1
            report(stage.name, self.step, stage.num_steps, loss)
            if self.rank[0] == 0 and (self.step % save_every == 0 or self.step == stage.num_steps):
                self.save()

    def _one_step(self, corpus: Corpus, stage: Stage) -> float:
        index, number = self.rank
        latents, tokens = corpus.batch(stage, self.step)
        mine = slice(index, None, number)
        seed = (_number(stage.name) * 1_000_003 + self.step) * 8 + index
        loss = velocity_loss(self.unet, self.text_encoder, latents[mine], tokens[mine], seed)
        loss.backward()
        if number > 1:
            self._share_gradients()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        decay = min(0.998, (self.step + 1) / (self.step + 20))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1 - decay)
        return loss.item()

    def _share_gradients(self) -> None:
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        torch.distributed.all_reduce(flat)
        flat /= self.rank[1]
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def save(self) -> None:
        """Write the state: a temporary file that then takes the old one's place."""
        state = {
            "step": self.step,
            "modules": self.modules.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.path)

    def load(self) -> None:
        """Go on from the state on disk, where there is one."""
        if not self.path.exists():
            return
        state = torch.load(self.path, weights_only=True)
        self.step = state["step"]
        self.modules.load_state_dict(state["modules"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])

    @torch.no_grad()
    def use_average(self) -> None:
        """Put the averaged weights in the place of the last ones."""
        for parameter, average in zip(self.parameters, self.average, strict=True):
            parameter.copy_(average)


def _decay(step: int, stage: Stage) -> float:
    warm = min(1.0, (step + 1) / 50)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / stage.num_steps)))
    return warm * (stage.final_share + (1 - stage.final_share) * cosine)


def _number(name: str) -> int:
    return sum(name.encode())
