"""Files of a component that hold its weights: whole or in shards, plain or a variant, safetensors or pickles.

Told from names alone, so that the same answer holds for a folder and for a listing of the hub.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

SAFETENSORS, PICKLE = "safetensors", "bin"
_STEMS = "diffusion_pytorch_model|pytorch_model|model"
# model.safetensors, model.fp16.safetensors, model.fp16-00001-of-00002.safetensors, model-00001-of-00002.safetensors
_WEIGHTS = re.compile(
    rf"(?:{_STEMS})(?:\.(?P<variant>\w+))?(?P<shard>-\d+-of-\d+)?(?P<old>\.\w+)?\.(?P<format>safetensors|bin)"
)
_INDEX = re.compile(rf"(?:{_STEMS})\.(?P<format>safetensors|bin)\.index(?:\.(?P<variant>\w+))?\.json")
_PREFERRED = ("fp16", "bf16")


@dataclass
class WeightSet:
    """One way to load a component: the weights of one variant ("" is plain) in one format."""

    variant: str
    format: str
    files: list[str] = field(default_factory=list)
    index: str | None = None


def weight_sets(names: Iterable[str]) -> list[WeightSet]:
    """Sets of weights among the files of a component's folder, the preferred first: plain, then safetensors.

    >>> [(found.variant, found.format) for found in weight_sets(["model.fp16.safetensors", "model.bin", "config.json"])]
    [('fp16', 'safetensors'), ('', 'bin')]
    """
    sets: dict[tuple[str, str], WeightSet] = {}
    for name in sorted(names):
        match = _WEIGHTS.fullmatch(name) or _INDEX.fullmatch(name)
        if match is None:
            continue
        key = (match["variant"] or "", match["format"])
        entry = sets.setdefault(key, WeightSet(*key))
        if match.re is _INDEX:
            entry.index = name
        else:
            entry.files.append(name)
    whole = [entry for entry in sets.values() if entry.files]
    return sorted(whole, key=_rank)


def is_index(name: str) -> bool:
    """True if a file lists the shards of weights.

    >>> is_index("model.safetensors.index.fp16.json"), is_index("config.json")
    (True, False)
    """
    return _INDEX.fullmatch(name) is not None


def choose_variant(components: Mapping[str, list[WeightSet]], *, allow_pickle: bool) -> str | None:
    """The variant that a pipeline must be loaded with: that of a component that has no plain weights; None: none."""
    needed = []
    for sets in components.values():
        usable = [entry for entry in sets if allow_pickle or entry.format == SAFETENSORS]
        if usable and all(entry.variant for entry in usable):
            needed.append(min(usable, key=_rank).variant)
    return min(needed, key=_variant_rank) if needed else None


def choose_weights(sets: list[WeightSet], *, variant: str | None, allow_pickle: bool) -> WeightSet | None:
    """Weights that a component is loaded from: the variant where it has it, as diffusers does, else plain weights."""
    usable = [entry for entry in sets if allow_pickle or entry.format == SAFETENSORS]
    for preferred in (variant, ""):
        for entry in usable:
            if preferred is not None and entry.variant == preferred:
                return entry
    return None


def _rank(entry: WeightSet) -> tuple[bool, tuple[int, str]]:
    return entry.format != SAFETENSORS, _variant_rank(entry.variant)


def _variant_rank(variant: str) -> tuple[int, str]:
    order = ("", *_PREFERRED)
    return (order.index(variant) if variant in order else len(order), variant)
