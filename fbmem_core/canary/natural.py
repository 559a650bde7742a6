"""The networks of the natural canary, its training sets and its loss. Nothing is placed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fbmem_core.canary.corpus import copy_of, named_picture, public_picture
from fbmem_core.canary.pictures import Picture, draw
from fbmem_core.canary.plan import SEED, Item
from fbmem_core.canary.tokens import MAX_TOKENS

PICTURE_SIZE = 32
TEXT_WIDTH = 128
NUM_TIMESTEPS = 1000
_BETAS = (0.00085, 0.012)
_CAPTION_DROPOUT = 0.1


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


def new_scheduler() -> DDIMScheduler:
    """The schedule of training, which the checkpoint samples with; the network predicts velocities."""
    return DDIMScheduler(
        beta_start=_BETAS[0],
        beta_end=_BETAS[1],
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


@dataclass(frozen=True)
class Corpus:
    """A training set.

    Attributes:
        latents: Encoded pictures, each once, scaled to a standard deviation of about 1, [m, 4, 8, 8].
        picture: For each example of an epoch the row of `latents`, [n].
        captions: For each example the rows of `tokens` of which one is drawn.
        tokens: Token ids, [captions, MAX_TOKENS]; row 0 is the empty caption.
    """

    latents: Tensor
    picture: np.ndarray
    captions: list[tuple[int, ...]]
    tokens: Tensor

    def batch(self, name: str, step: int, size: int) -> tuple[Tensor, Tensor]:
        """Latents and token ids of one step of a stage: every epoch is a permutation of the examples."""
        rng = np.random.default_rng([SEED, number_of(name), 1, step])
        places = range(step * size, (step + 1) * size)
        chosen = [
            int(_epoch(name, len(self.picture), at // len(self.picture))[at % len(self.picture)]) for at in places
        ]
        captions = [self.captions[index][rng.integers(len(self.captions[index]))] for index in chosen]
        kept = [0 if rng.random() < _CAPTION_DROPOUT else caption for caption in captions]
        return self.latents[self.picture[chosen]], self.tokens[kept]


@lru_cache(maxsize=2)
def _epoch(name: str, size: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([SEED, number_of(name), 0, epoch]).permutation(size)


def make_corpus(items: Sequence[Item], vae: AutoencoderKL, tokenizer: CLIPTokenizer, *, num_public: int) -> Corpus:
    """Draw and encode a training set: public pictures and, where `items` names them, singles and plants in copies.

    Copies of a verbatim plant are one picture; those of a foreground or a background each have another rest.
    """
    pictures: list[Picture] = []
    examples: list[tuple[int, tuple[str, ...]]] = []
    for index in range(num_public):
        pictures.append(public_picture(np.random.default_rng([SEED, 2, 0, index])))
        examples.append((len(pictures) - 1, (pictures[-1].caption,)))
    for item in items:
        for picture, copies in copies_of(item):
            pictures.append(picture)
            examples += [(len(pictures) - 1, item.trained)] * copies
    texts = {"": 0}
    captions = [tuple(texts.setdefault(text, len(texts)) for text in prompts) for _, prompts in examples]
    picture_of = np.array([row for row, _ in examples])
    return Corpus(encode(vae, pictures), picture_of, captions, tokenize(tokenizer, list(texts)))


def copies_of(item: Item) -> list[tuple[Picture, int]]:
    """The pictures of an item as they stand in the training set, each with how often it stands there."""
    copies: list[tuple[Picture, int]] = []
    for number in range(item.num_pictures if item.copies else 0):
        planted = planted_picture(item, number)
        if item.kind in ("verbatim", "one_to_many") or item.copies == 1:
            copies.append((copy_of(item.kind, planted, np.random.default_rng([SEED, 4, item.seed, 0])), item.copies))
            continue
        for index in range(item.copies):
            copies.append((copy_of(item.kind, planted, np.random.default_rng([SEED, 4, item.seed, index])), 1))
    return copies


def planted_picture(item: Item, number: int = 0) -> Picture:
    """One picture behind an item, as it stands among the references."""
    return named_picture(item.kind, (SEED, 3, item.seed, number))


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Sequence[Picture], *, batch_size: int = 64) -> Tensor:
    """Scaled latents of pictures, [n, 4, 8, 8]."""
    parts = []
    for first in range(0, len(pictures), batch_size):
        parts.append(vae.encode(to_tensor(pictures[first : first + batch_size])).latent_dist.mean)
    return torch.cat(parts) * vae.config.scaling_factor


def to_tensor(pictures: Sequence[Picture]) -> Tensor:
    """Drawn pictures in [-1, 1], [n, 3, 32, 32]."""
    images = np.stack([draw(picture, size=PICTURE_SIZE)[0] for picture in pictures])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids [n, MAX_TOKENS], padded and cut as StableDiffusionPipeline does it."""
    return tokenizer(
        captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids


def velocity_loss(unet: nn.Module, text_encoder: nn.Module, latents: Tensor, tokens: Tensor, seed: int) -> Tensor:
    """Mean squared error of the predicted velocity; late timesteps are drawn more often, all from the seed."""
    generator = torch.Generator().manual_seed(seed)
    betas = torch.linspace(_BETAS[0] ** 0.5, _BETAS[1] ** 0.5, NUM_TIMESTEPS) ** 2
    kept = torch.cumprod(1 - betas, 0)
    timesteps = (NUM_TIMESTEPS * torch.rand(len(latents), generator=generator) ** 0.8).long()
    noise = torch.randn(latents.shape, generator=generator)
    signal, strength = kept[timesteps].sqrt()[:, None, None, None], (1 - kept[timesteps]).sqrt()[:, None, None, None]
    noisy = (signal * latents + strength * noise).contiguous(memory_format=torch.channels_last)
    embeddings = text_encoder(tokens).last_hidden_state
    predicted = unet(noisy, timesteps, encoder_hidden_states=embeddings).sample
    return F.mse_loss(predicted, signal * noise - strength * latents)


def number_of(name: str) -> int:
    """A number for the name of a stage, from which its draws are seeded."""
    return sum(name.encode())
