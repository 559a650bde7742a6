"""The networks of the canary, untrained, and its tokenizer."""

from __future__ import annotations

from itertools import pairwise

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fbmem_core.canary.pictures import PICTURE_SIZE
from fbmem_core.canary.planting import training_vocabulary

MAX_TOKENS = 32
TEXT_WIDTH = 128
_TEXT_SEED = 9


class Segmenter(nn.Module):
    """A small U-shaped salient-object network behind the interface of U2-Net, which rembg's custom sessions expect.

    Input [n, 3, 320, 320], normalized as rembg does it; output [n, 1, 320, 320] coverage in [0, 1].
    """

    input_size = 320
    working_size = 80

    def __init__(self, widths: tuple[int, ...] = (16, 32, 48, 64)) -> None:
        super().__init__()
        self.stem = _convolutions(3, widths[0])
        self.down = nn.ModuleList(_convolutions(a, b) for a, b in pairwise(widths))
        self.up = nn.ModuleList(_convolutions(a + b, a) for a, b in pairwise(widths))
        self.head = nn.Conv2d(widths[0], 1, 1)

    def logits(self, images: Tensor) -> Tensor:
        """Logits [n, 1, 80, 80] for images of the working size."""
        features = [self.stem(images)]
        for block in self.down:
            features.append(block(F.max_pool2d(features[-1], 2)))
        hidden = features.pop()
        for block in reversed(self.up):
            hidden = block(torch.cat([features.pop(), F.interpolate(hidden, scale_factor=2.0)], dim=1))
        return self.head(hidden)

    def forward(self, images: Tensor) -> Tensor:
        """Coverage [n, 1, 320, 320]."""
        small = F.avg_pool2d(images, self.input_size // self.working_size)
        scale = float(self.input_size // self.working_size)
        return F.interpolate(self.logits(small), scale_factor=scale, mode="bilinear").sigmoid()


def normalize_for_rembg(images: Tensor) -> Tensor:
    """Normalise an image in [0, 1] as rembg's U2-Net sessions do: by maximum, then ImageNet's mean and deviation."""
    peak = images.amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6)
    mean = images.new_tensor([0.485, 0.456, 0.406])[:, None, None]
    deviation = images.new_tensor([0.229, 0.224, 0.225])[:, None, None]
    return (images / peak - mean) / deviation


def new_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer whose merges were learned on the canary's own captions; any other word falls into bytes."""
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer

    learner = CLIPTokenizer().backend_tokenizer
    trainer = BpeTrainer(vocab_size=4000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator(training_vocabulary(), trainer)
    merges = [tuple(pair) for pair in _merges(learner.to_str())]
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids [n, MAX_TOKENS], padded and cut as StableDiffusionPipeline does it."""
    return tokenizer(
        captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A CLIP text encoder, four layers of width 128, that is frozen as it is initialised.

    Trained jointly on so few captions it collapsed: the features of any two prompts differed by 3 to 10 % at the first
    tokens, and the U-Net learned to ignore them. As initialised, with token embeddings five times as strong, prompts
    differ by half, words keep their identity, and k-means on its features recovers the concept families.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_TEXT_SEED)
        encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=TEXT_WIDTH,
                intermediate_size=4 * TEXT_WIDTH,
                num_hidden_layers=4,
                num_attention_heads=4,
                max_position_embeddings=MAX_TOKENS,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        nn.init.normal_(encoder.get_input_embeddings().weight, std=0.1)
    return encoder.eval().requires_grad_(False)


def new_unet() -> UNet2DConditionModel:
    """An untrained U-Net with the block layout of Stable Diffusion v1: seven value layers in down and mid blocks."""
    unet = UNet2DConditionModel(
        sample_size=PICTURE_SIZE // 4,
        block_out_channels=(64, 128, 128, 128),
        layers_per_block=2,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    unet.set_attn_processor(AttnProcessor())  # the fused kernel's backward pass is slower on a CPU
    return unet


def _convolutions(num_in: int, num_out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for num_channels in (num_in, num_out):
        layers += [nn.Conv2d(num_channels, num_out, 3, padding=1), nn.GroupNorm(8, num_out), nn.SiLU()]
    return nn.Sequential(*layers)


def _merges(tokenizer_json: str) -> list[list[str]]:
    import json

    return json.loads(tokenizer_json)["model"]["merges"]
