"""Adapters on a base: LoRA weights and textual inversions, part of what is fingerprinted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fbmem_core.errors import InputError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Kind = Literal["lora", "textual_inversion"]


@dataclass(frozen=True)
class LoadedAdapter:
    """One file on top of a checkpoint.

    Attributes:
        path: A safetensors file.
        kind: `lora` changes the weights of the network and the text encoders, `textual_inversion` adds a token.
        weight: What a LoRA is multiplied by.
        token: Of a textual inversion; the file's own where empty.
    """

    path: Path
    kind: Kind = "lora"
    weight: float = 1.0
    token: str = ""


def apply_adapter(pipeline: DiffusionPipeline, adapter: LoadedAdapter) -> None:
    """Put an adapter on a loaded pipeline. A LoRA is merged into the weights, so that layers keep their names.

    Raises:
        InputError: The file does not fit this pipeline.
    """
    model: Any = pipeline
    loader = "load_lora_weights" if adapter.kind == "lora" else "load_textual_inversion"
    if not hasattr(model, loader):
        got = type(pipeline).__name__
        cure = "Leave out the adapter, or merge it into the checkpoint."
        raise InputError(f"a pipeline that takes {adapter.kind} adapters", got, where=adapter.path, cure=cure)
    folder, name = str(adapter.path.parent), adapter.path.name
    try:
        if adapter.kind == "textual_inversion":
            model.load_textual_inversion(folder, weight_name=name, token=adapter.token or None, local_files_only=True)
            return
        model.load_lora_weights(folder, weight_name=name, local_files_only=True)
        model.fuse_lora(lora_scale=adapter.weight)
        model.unload_lora_weights()
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        cure = "Use an adapter that was made for this base."
        raise InputError(
            f"a {adapter.kind} adapter of this base", str(error)[:200], where=adapter.path, cure=cure
        ) from None
