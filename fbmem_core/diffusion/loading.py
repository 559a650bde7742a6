"""Checkpoints loaded: on which device, in which type, and no other weights than those that were registered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fbmem_core.diffusion.adapters import apply_adapter
from fbmem_core.diffusion.architectures import ARCHITECTURES
from fbmem_core.diffusion.checkpoint import Checkpoint, check_fingerprint
from fbmem_core.diffusion.device import check_dtype, choose_device, choose_dtype
from fbmem_core.diffusion.pipeline_files import IRRELEVANT, PipelineFiles
from fbmem_core.errors import InputError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


# (pickles, safetensors) among the weights: what diffusers is told; shards of pickles are found by False alone
_SAFETENSORS = {(False, True): True, (True, False): False, (True, True): None}


def load_pipeline(
    checkpoint: Checkpoint,
    *,
    dtype: str = "auto",
    device: str = "auto",
    allow_pickle: bool = False,
    compile: bool = False,
    channels_last: bool = False,
) -> DiffusionPipeline:
    """Load the pipeline, without safety checker or progress bar, after its files were hashed again.

    Args:
        checkpoint: As `find_checkpoint` gives it.
        dtype: `auto` is that of the checkpoint where there is a GPU; see `choose_dtype`.
        device: `auto` is CUDA, then MPS, else the CPU.
        allow_pickle: Whether weights may be pickles.
        compile: Whether the network is compiled: minutes once, then faster on a GPU.
        channels_last: Whether a convolutional network stores its channels last: faster on a GPU in half precision.

    Raises:
        InputError: The files are no longer those that were registered, or cannot be loaded; the device is not there, or
            too slow in this type.
    """
    import torch
    from diffusers.utils import logging

    logging.set_verbosity_error()
    device = choose_device(device)
    dtype = choose_dtype(dtype, checkpoint.dtype, device)
    check_dtype(dtype, device)
    files = check_fingerprint(checkpoint, allow_pickle=allow_pickle)
    pipeline = _load(checkpoint, files, getattr(torch, dtype))
    for adapter in checkpoint.adapters:
        apply_adapter(pipeline, adapter)
    pipeline.set_progress_bar_config(disable=True)
    pipeline = pipeline.to(device)
    network = getattr(pipeline, ARCHITECTURES[type(pipeline).__name__].network)
    if channels_last:
        network.to(memory_format=torch.channels_last)
    if compile:
        network.compile()
    return pipeline


def _load(checkpoint: Checkpoint, files: PipelineFiles, dtype: Any) -> Any:
    import diffusers
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    name = ARCHITECTURES[checkpoint.architecture].pipeline or checkpoint.architecture
    pipeline_class = getattr(diffusers, name)
    left_out: dict[str, Any] = dict.fromkeys([*_unneeded(pipeline_class), *files.missing])
    try:
        if checkpoint.single_file is not None:
            return pipeline_class.from_single_file(
                str(checkpoint.single_file),
                config=str(checkpoint.directory),
                local_files_only=True,
                torch_dtype=dtype,
                **left_out,
            )
        suffixes = {file.suffix for file in files.files} & {".bin", ".safetensors"}
        return pipeline_class.from_pretrained(
            checkpoint.directory,
            dtype=dtype,
            variant=checkpoint.variant,
            use_safetensors=_SAFETENSORS[".bin" in suffixes, ".safetensors" in suffixes],
            local_files_only=True,
            **left_out,
        )
    except (OSError, ValueError, RuntimeError, KeyError, SingleFileComponentError) as error:
        cure = "Load it with diffusers itself to see more, and save it anew."
        got = " ".join(str(error).split())[:300]
        where = checkpoint.single_file or checkpoint.directory
        raise InputError(f"weights that {name} loads", got, where=where, cure=cure) from None


def _unneeded(pipeline_class: Any) -> list[str]:
    """Components that the class takes and that never change an image."""
    import inspect

    taken = inspect.signature(pipeline_class.__init__).parameters
    return [name for name in sorted(IRRELEVANT) if name in taken]
