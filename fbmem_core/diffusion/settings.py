"""How images are sampled: the section `sampling` of an audit file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fbmem_core.settings import DEVICE_PATTERN, Section

Mode = Literal["paper", "released"]  # whose noise differences: of the first step, or as NeMo's released code has them


class SamplingConfig(Section):
    """How images are sampled. Image k of a prompt has the seed `seed + k`, whatever is sampled beside it."""

    steps: int = Field(50, ge=1, le=1000)
    guidance_scale: float = Field(7.5, ge=0, le=100)
    seed: int = Field(0, ge=0, lt=2**32)  # torch's CPU generator drops higher bits: their images would be the same
    height: int = Field(512, ge=8, multiple_of=8)
    width: int = Field(512, ge=8, multiple_of=8)
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    device: str = Field("auto", pattern=DEVICE_PATTERN)
    batch_size: int = Field(8, ge=1)
