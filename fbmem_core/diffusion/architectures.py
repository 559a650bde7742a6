"""Pipelines that can be audited, told from their files alone: torch is not needed to refuse the others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fbmem_core.diffusion.schedule_names import check_scheduler
from fbmem_core.errors import InputError


@dataclass(frozen=True)
class Architecture:
    """One class of pipelines.

    Attributes:
        denoiser: `file:Class` in `families`.
        network: The component that predicts.
        num_inference_steps: Recommended, as the pipeline's own call has it; so is the next.
        guidance_scale: The same.
        settings: Of guidance that its call takes besides: `negative_prompt`, `guidance_rescale`.
        native_size: Side in px where the files do not tell it.
        pipeline: The class that it is loaded as; its own where empty.
        token_limits: Of each tokenizer, the tokens that its encoder reads; 0: as many as the tokenizer says.
    """

    denoiser: str
    network: str
    num_inference_steps: int
    guidance_scale: float
    settings: frozenset[str] = frozenset({"negative_prompt"})
    native_size: int | None = None
    pipeline: str = ""
    token_limits: Mapping[str, int] = field(default_factory=lambda: {"tokenizer": 0})


_BOTH = frozenset({"negative_prompt", "guidance_rescale"})
_NONE: frozenset[str] = frozenset()
_SD3_TOKENS = {"tokenizer": 77, "tokenizer_2": 77, "tokenizer_3": 256}

ARCHITECTURES: Mapping[str, Architecture] = {
    "StableDiffusionPipeline": Architecture("unet:UNet", "unet", 50, 7.5, _BOTH),
    # the same components, which its own call would want a picture for
    "StableDiffusionImg2ImgPipeline": Architecture(
        "unet:UNet", "unet", 50, 7.5, _BOTH, pipeline="StableDiffusionPipeline"
    ),
    "StableDiffusionXLPipeline": Architecture("unet:UNetXL", "unet", 50, 5.0, _BOTH),
    "LatentConsistencyModelPipeline": Architecture("unet:UNet", "unet", 4, 8.5, _NONE),
    "StableDiffusion3Pipeline": Architecture("sd3:SD3", "transformer", 28, 7.0, token_limits=_SD3_TOKENS),
    "FluxPipeline": Architecture(
        "flux:Flux", "transformer", 28, 3.5, _NONE, native_size=1024, token_limits={"tokenizer_2": 512}
    ),
    "PixArtAlphaPipeline": Architecture("pixart:PixArt", "transformer", 20, 4.5, token_limits={"tokenizer": 120}),
    "PixArtSigmaPipeline": Architecture("pixart:PixArt", "transformer", 20, 4.5, token_limits={"tokenizer": 300}),
    "SanaPipeline": Architecture(
        "sana:Sana", "transformer", 20, 4.5, native_size=1024, token_limits={"tokenizer": 300}
    ),
    "QwenImagePipeline": Architecture(
        "qwen:QwenImage", "transformer", 50, 4.0, native_size=1024, token_limits={"tokenizer": 1024}
    ),
}
_NEEDS_PICTURE = ("Inpaint", "Img2Img", "Pix2Pix", "ControlNet", "Upscale", "Depth2Img", "ImageVariation", "Edit")
_TEXT_EMBEDDINGS = (None, "text_time")


def check_architecture(class_name: str, *, where: str | Path) -> None:
    """Refuse a class of pipelines that is not known here.

    Raises:
        InputError: With the reason.
    """
    if class_name in ARCHITECTURES:
        return
    if any(word in class_name for word in _NEEDS_PICTURE):
        cure = (
            "One that needs a picture beside the prompt cannot be audited: save its base as a text-to-image pipeline."
        )
    else:
        cure = f"Audited are {', '.join(ARCHITECTURES)}."
    raise InputError("a text-to-image pipeline", class_name, where=where, cure=cure)


def check_components(directory: Path, components: Mapping[str, Any]) -> None:
    """Refuse a pipeline of a known class whose network or scheduler would be answered wrongly.

    Args:
        directory: The pipeline.
        components: Its model_index.json.

    Raises:
        InputError: The network wants more than text and noise, or the scheduler's steps are not known.
    """
    architecture = ARCHITECTURES[components["_class_name"]]
    network, vae = (read_config(directory / name / "config.json") for name in (architecture.network, "vae"))
    where = directory / architecture.network / "config.json"
    cure = "Only text-to-image models can be audited."
    if architecture.network == "unet":
        channels, expected = network.get("in_channels", 4), vae.get("latent_channels", 4)
        if channels != expected:
            raise InputError(f"a U-Net of {expected} input channels", channels, where=where, cure=cure)
        embedding = network.get("addition_embed_type")
        if embedding not in _TEXT_EMBEDDINGS or network.get("class_embed_type") is not None:
            raise InputError("a U-Net that is told text, time and size", "another", where=where, cure=cure)
    if components.get("requires_aesthetics_score"):
        raise InputError("a base model", "a refiner", where=directory / "model_index.json", cure=cure)
    scheduler = directory / "scheduler" / "scheduler_config.json"
    check_scheduler(read_config(scheduler), where=scheduler)


def recommended_settings(directory: Path, class_name: str) -> dict[str, Any]:
    """Steps, guidance, height and width as the pipeline recommends them: the names are those of `sampling`."""
    architecture = ARCHITECTURES[class_name]
    side = architecture.native_size
    if side is None:
        vae, network = (read_config(directory / name / "config.json") for name in ("vae", architecture.network))
        factor = 2 ** max(len(vae.get("block_out_channels", ())) - 1, 0)
        size = network.get("sample_size") or 64
        sides = [int(value) * factor for value in (size if isinstance(size, list) else [size, size])]
    else:
        sides = [side, side]
    return {
        "steps": architecture.num_inference_steps,
        "guidance_scale": architecture.guidance_scale,
        "height": sides[0],
        "width": sides[1],
    }


def read_config(path: Path) -> dict[str, Any]:
    """A component's config; empty where there is none."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
