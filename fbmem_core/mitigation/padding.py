"""Padding in the place of the end: Kim and No, arXiv 2605.02908 (CVPR 2026 Findings).

CLIP's tokenizer pads with the end token, whose embedding is the one that CLIP's training looks at, so a prompt says its
end up to 75 times, and a memorized image hangs on that more than on the prompt's words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fbmem_core.diffusion.denoiser import denoiser_of
from fbmem_core.errors import InputError
from fbmem_core.mitigation.method import ImageMethod, Intervention
from fbmem_core.mitigation.options import Options

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class PaddingOptions(Options):
    """`mode` replace: padding of another token before it is encoded; mask: the embeddings of padding are zeroed.

    `share` of the padding, the first part of it, is changed. `mask_end` zeroes the end token's embedding too: by
    default with `replace`, as in the paper's first method, and not with `mask`, its second.
    """

    mode: Literal["replace", "mask"] = "replace"
    share: Annotated[float, Field(ge=0, le=1)] = 1.0
    mask_end: bool | None = None


class Padding(ImageMethod):
    """The embedding of every prompt, memorized or not, with padding that says nothing.

    The token that replaces the padding is the tokenizer's first ordinary one, `!` in CLIP.
    """

    name = "padding"
    options_type: ClassVar[type[Options]] = PaddingOptions
    strength = "share"
    strengths = (0.2, 0.4, 0.6, 0.8, 1.0)

    @classmethod
    def check(cls, pipeline: DiffusionPipeline) -> None:
        """Refuse models whose prompt is more than the embedding of one CLIP."""
        encoders = [name for name in ("text_encoder_2", "text_encoder_3") if getattr(pipeline, name, None) is not None]
        if encoders or "CLIP" not in type(pipeline.text_encoder).__name__:
            cure = f"Leave out `{cls.name}`."
            raise InputError("a model with one CLIP text encoder", type(pipeline).__name__, where=cls.name, cure=cure)

    def compute(self, prompt_id: str) -> Intervention:
        """The embedding with the padding changed."""
        pipeline = self.evidence.pipeline
        ids, end = _token_ids(pipeline.tokenizer, self.evidence.prompts[prompt_id])
        num_changed = round(self.options.share * (len(ids) - end - 1))
        changed = slice(end + 1, end + 1 + num_changed)
        is_replaced = self.options.mode == "replace"
        if is_replaced:
            ids[changed] = _ordinary_token(pipeline.tokenizer)
        with torch.no_grad():
            embeds = pipeline.text_encoder(ids[None].to(pipeline.device))[0].clone()
        if not is_replaced:
            embeds[:, changed] = 0
        if self.options.mask_end if self.options.mask_end is not None else is_replaced:
            embeds[:, end] = 0
        return Intervention(embeds=embeds.to(denoiser_of(pipeline).dtype))


def _token_ids(tokenizer: object, prompt: str) -> tuple[Tensor, int]:
    """The ids [tokens] of a prompt as the pipeline pads and cuts it, and the position of its end token."""
    ids = tokenizer(  # type: ignore[operator]
        prompt,
        padding="max_length",
        max_length=tokenizer.model_max_length,  # type: ignore[attr-defined]
        truncation=True,
        return_tensors="pt",
    ).input_ids[0]
    end = int((ids == tokenizer.eos_token_id).nonzero()[0, 0])  # type: ignore[attr-defined]
    return ids, end


def _ordinary_token(tokenizer: object) -> int:
    """The lowest id that is no special token."""
    special = set(tokenizer.all_special_ids)  # type: ignore[attr-defined]
    return next(token for token in range(len(special) + 1) if token not in special)
