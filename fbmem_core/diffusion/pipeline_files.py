"""The files of a pipeline that determine its images, and what is missing or broken among them, said by name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fbmem_core.diffusion.architectures import check_architecture, check_components
from fbmem_core.diffusion.weight_files import (
    SAFETENSORS,
    WeightSet,
    choose_variant,
    choose_weights,
    is_index,
    weight_sets,
)
from fbmem_core.errors import InputError

# parts that never change a sampled image
IRRELEVANT = frozenset({"safety_checker", "feature_extractor", "image_encoder"})
# parts without which a pipeline samples, if with less understanding of its prompts
OPTIONAL: Mapping[str, frozenset[str]] = {"StableDiffusion3Pipeline": frozenset({"text_encoder_3", "tokenizer_3"})}
INDEX = "model_index.json"
_LIBRARIES = ("diffusers", "transformers")
CONFIG_SUFFIXES = frozenset({".json", ".txt", ".model"})
_COPY_AGAIN = "Copy the checkpoint again, or wait until the copy is complete."
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class PipelineFiles:
    """Files that a pipeline is loaded from.

    Attributes:
        files: Relative to the folder, sorted by component.
        variant: Of the weights, as diffusers is told it; None: plain ones.
        missing: Optional components whose folders are not there.
        class_name: Of the pipeline.
    """

    files: tuple[Path, ...]
    variant: str | None
    missing: frozenset[str]
    class_name: str


def read_pipeline_files(directory: Path, *, allow_pickle: bool = False, with_weights: bool = True) -> PipelineFiles:
    """Read the files that determine the images of a pipeline.

    Args:
        directory: With a model_index.json.
        allow_pickle: Whether weights may be pickles.
        with_weights: Whether weights are looked for; without, the folder holds configs beside a single file.

    Raises:
        InputError: It cannot be audited; or model_index.json or a component's folder, config or weights are missing or
            not there to their end, or weights are pickles.
    """
    components = _read_index(directory)
    class_name = components["_class_name"]
    listed = [k for k, v in components.items() if isinstance(v, list) and any(v) and k not in IRRELEVANT]
    _check_classes(directory / INDEX, components, listed)
    check_architecture(class_name, where=directory / INDEX)
    missing = {name for name in OPTIONAL.get(class_name, ()) if name in listed and not (directory / name).is_dir()}
    names = sorted(set(listed) - missing)
    for name in names:
        if not (directory / name).is_dir():
            raise InputError(f"the component `{name}`", "no such folder", where=directory, cure=_COPY_AGAIN)
    sets = {name: weight_sets(_names(directory / name)) for name in names if _has_weights(directory / name)}
    variant = choose_variant(sets, allow_pickle=allow_pickle) if with_weights else None
    files = [Path(INDEX)]
    for name in names:
        files += _configs(directory, name)
        if with_weights and name in sets:
            files += _weights(directory, name, sets[name], variant, allow_pickle)
    for file in files:
        _check_complete(directory / file)
    check_components(directory, components)
    return PipelineFiles(tuple(files), variant, frozenset(missing), class_name)


def pipeline_files(directory: Path, *, allow_pickle: bool = False) -> list[Path]:
    """The files of a pipeline that determine its images, relative to `directory`; see `read_pipeline_files`."""
    return list(read_pipeline_files(directory, allow_pickle=allow_pickle).files)


def weights_dtype(path: Path) -> str:
    """The type of most numbers of a safetensors file, as torch calls it; float32 where it cannot be told."""
    header = _safetensors_header(path) if path.suffix == ".safetensors" else None
    sizes: dict[str, int] = {}
    for tensor in _tensors(header or {}):
        first, last = tensor["data_offsets"]
        sizes[tensor["dtype"]] = sizes.get(tensor["dtype"], 0) + last - first
    return _DTYPES.get(max(sizes, key=lambda name: sizes[name], default=""), "float32")


def check_safetensors(path: Path) -> None:
    """Raise InputError unless a safetensors file is there to its end."""
    _check_complete(path)


def _read_index(directory: Path) -> dict[str, Any]:
    index = directory / INDEX
    try:
        components = json.loads(index.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        cure = "Point `checkpoint` at a directory made by save_pretrained()."
        raise InputError("a diffusers checkpoint with model_index.json", "none", where=directory, cure=cure) from None
    except ValueError as error:
        raise InputError("model_index.json to be JSON", str(error), where=directory, cure="Save it anew.") from None
    is_index_of_components = isinstance(components, dict) and "_class_name" in components
    if not (is_index_of_components and any(isinstance(v, list) and any(v) for v in components.values())):
        raise InputError("a pipeline's components", "none", where=index, cure="Save the pipeline anew.")
    return dict(components)


def _check_classes(index: Path, components: dict[str, Any], names: list[str]) -> None:
    """Refuse all but inner folders and classes of the two libraries: others would be code of the checkpoint."""
    for name in ["_class_name", *names]:
        value = components[name]
        is_ours = isinstance(value, str) if name == "_class_name" else value[0] in _LIBRARIES
        if not (is_ours and re.fullmatch(r"\w+", name)):
            got = f"`{name}`: {json.dumps(value)}"
            cure = "Code that comes with a checkpoint is not run: export it as a pipeline of diffusers."
            raise InputError("components of diffusers and transformers", got, where=index, cure=cure)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def _has_weights(folder: Path) -> bool:
    return (folder / "config.json").exists()


def _configs(directory: Path, component: str) -> list[Path]:
    names = _names(directory / component)
    configs = [name for name in names if Path(name).suffix in CONFIG_SUFFIXES and not is_index(name)]
    if not configs:
        raise InputError(f"a config of `{component}`", "none", where=directory / component, cure=_COPY_AGAIN)
    return [Path(component) / name for name in configs]


def _weights(
    directory: Path, component: str, sets: list[WeightSet], variant: str | None, allow_pickle: bool
) -> list[Path]:
    folder = directory / component
    chosen = choose_weights(sets, variant=variant, allow_pickle=allow_pickle)
    if chosen is None and sets and not allow_pickle and all(entry.format != SAFETENSORS for entry in sets):
        cure = "Convert it to safetensors, or set `allow_pickle: true` if you trust its source."
        raise InputError(f"safetensors weights of `{component}`", f"`{sets[0].files[0]}`", where=folder, cure=cure)
    if chosen is None and sets:
        variants = ", ".join(f"`{entry.variant}`" for entry in sets)
        cure = "Save all components with the same variant."
        raise InputError(f"weights of `{component}` of variant `{variant}`", variants, where=folder, cure=cure)
    if chosen is None:
        raise InputError(f"weights of `{component}` (*.safetensors)", "none", where=folder, cure=_COPY_AGAIN)
    names = [*chosen.files]
    if chosen.index is not None and chosen.format != SAFETENSORS:
        cure = "Save the pipeline anew with safe_serialization=True: diffusers does not load pickles in shards."
        raise InputError(f"whole pickles of `{component}`", f"`{chosen.index}`", where=folder, cure=cure)
    if chosen.index is not None:
        _check_shards(folder, chosen)
        names = sorted({chosen.index, *names})
    return [Path(component) / name for name in names]


def _check_shards(folder: Path, chosen: WeightSet) -> None:
    """Check that every shard that an index names is there, in the folder itself."""
    assert chosen.index is not None
    index = folder / chosen.index
    try:
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError("an index with a weight_map", "none", where=index, cure=_COPY_AGAIN) from None
    if missing := sorted(map(str, named - set(chosen.files))):
        raise InputError("every shard of the weights", f"no `{missing[0]}`", where=folder, cure=_COPY_AGAIN)


def _check_complete(path: Path) -> None:
    """A file that is still being copied is JSON that breaks off, or shorter than its own header says."""
    if path.suffix == ".json":
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError("whole JSON", f"{error}", where=path, cure=_COPY_AGAIN) from None
    elif path.suffix == ".safetensors":
        size, expected = path.stat().st_size, _safetensors_size(path)
        if size != expected:
            got = f"{size} of {expected}" if expected else f"{size} and no header"
            raise InputError("all bytes of the weights", got, where=path, cure=_COPY_AGAIN)


def _safetensors_size(path: Path) -> int | None:
    """Size in bytes that the file's header promises; None without a whole header."""
    header = _safetensors_header(path)
    if header is None:
        return None
    try:
        end = max((tensor["data_offsets"][1] for tensor in _tensors(header)), default=0)
        with path.open("rb") as stream:
            return 8 + int.from_bytes(stream.read(8), "little") + int(end)
    except (AttributeError, TypeError, KeyError, IndexError, ValueError):
        return None


def _safetensors_header(path: Path) -> dict[str, Any] | None:
    """https://huggingface.co/docs/safetensors: 8 bytes of length, a JSON header with `data_offsets`, the data."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > path.stat().st_size:
            return None
        header = stream.read(length)
    try:
        read = json.loads(header)
    except ValueError:
        return None
    return read if isinstance(read, dict) else None


def _tensors(header: Mapping[str, Any]) -> list[Any]:
    return [value for name, value in header.items() if name != "__metadata__"]
