"""Settings of sampling: the section `sampling` of an audit file."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from fbmem_core.settings import DEVICE_PATTERN, Section

Mode = Literal["paper", "released"]  # whose noise differences: of the first step, or as NeMo's released code has them


class SamplingConfig(Section):
    """Settings of sampling. Image k of a prompt has the seed `seed + k`, whatever is sampled beside it.

    Steps, guidance_scale, height and width that a file does not name are those that the checkpoint's pipeline
    recommends; dtype `auto` is the checkpoint's own where there is a GPU. Both are settled when the audit is
    registered. `compile` and `channels_last` make a GPU faster and change no more than the last digits.
    """

    steps: int = Field(50, ge=1, le=1000)
    guidance_scale: float = Field(7.5, ge=0, le=100)
    guidance_rescale: float = Field(0.0, ge=0, le=1)
    negative_prompt: str = ""
    seed: int = Field(0, ge=0, lt=2**32)  # torch's CPU generator drops higher bits: their images would be the same
    height: int = Field(512, ge=8, multiple_of=8)
    width: int = Field(512, ge=8, multiple_of=8)
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    device: str = Field("auto", pattern=DEVICE_PATTERN)
    batch_size: int = Field(8, ge=1)
    compile: bool = False
    channels_last: bool = False

    def of_images(self) -> dict[str, Any]:
        """The settings that an image depends on, in JSON's types: for cache keys."""
        return self.model_dump(mode="json", exclude={"seed", "device", "batch_size", "compile", "channels_last"})
