"""Neurons switched off for good: a copy of a checkpoint with scaled rows of to_v."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fbmem_core.diffusion.architectures import ARCHITECTURES, read_config
from fbmem_core.errors import InputError
from fbmem_core.neurons.layers import NeuronSet


def write_mitigated_checkpoint(
    directory: Path, out: Path, neurons: NeuronSet, *, factor: float = 0.0
) -> dict[str, float]:
    """Copy a pipeline with these neurons switched off, or damped, for every prompt: scaled rows of to_v.

    Any diffusers user can load it, and it samples what `scale_neurons` samples.

    Args:
        directory: A diffusers pipeline with safetensors weights.
        out: A folder that does not exist yet.
        neurons: What is multiplied.
        factor: By this; 0 switches off.

    Returns:
        The difference that it makes: by tensor, the norm of what was changed over the norm of the whole.

    Raises:
        InputError: `out` exists, or the checkpoint lacks a layer or a neuron.
    """
    if out.exists():
        raise InputError("a new folder", "one that exists", where=out, cure="Name another, or remove it.")
    network = ARCHITECTURES[read_config(directory / "model_index.json")["_class_name"]].network
    files = sorted((directory / network).glob("*.safetensors"))
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(directory, partial)
    try:
        changed: dict[str, float] = {}
        for file in files:
            changed |= _scale_rows(file, partial / network / file.name, neurons, factor)
        unscaled = [layer for layer in neurons.indices if f"{layer}.weight" not in changed]
        if unscaled:
            cure = "Use neurons that were found in this checkpoint."
            raise InputError(f"a tensor `{unscaled[0]}.weight`", "none", where=directory / network, cure=cure)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return changed


def _scale_rows(source: Path, target: Path, neurons: NeuronSet, factor: float) -> dict[str, float]:
    tensors = load_file(source)
    with safe_open(source, framework="pt") as file:
        metadata = file.metadata()
    changed = {}
    for layer, indices in neurons.indices.items():
        for name in (f"{layer}.weight", f"{layer}.bias"):
            if name not in tensors:
                continue
            tensor, rows = tensors[name], sorted(indices)
            if rows[-1] >= len(tensor):
                cure = "Use neurons that were found in this checkpoint."
                raise InputError(f"neurons below {len(tensor)}", rows[-1], where=f"{source}, {name}", cure=cure)
            before = tensor.float()
            tensor[rows] = tensor[rows] * factor
            changed[name] = ((tensor.float() - before).norm() / before.norm()).item()
    if changed:
        target.unlink()
        save_file(tensors, target, metadata=metadata)
    return changed
