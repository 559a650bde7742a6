"""Checkpoints: found, fingerprinted, loaded."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fbmem_core.errors import InputError, WeightsNotFoundError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

# parts that never change a sampled image
_IRRELEVANT = frozenset({"safety_checker", "feature_extractor", "image_encoder"})
_LIBRARIES = ("diffusers", "transformers")
_CONFIG_SUFFIXES = frozenset({".json", ".txt", ".model"})
_WEIGHT_SUFFIXES = frozenset({".safetensors"})
_SHARDS_SUFFIX = ".safetensors.index.json"
_PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".ckpt"})
_HUB_SECONDS = 20.0
_COPY_AGAIN = "Copy the checkpoint again, or wait until the copy is complete."


@dataclass(frozen=True)
class Checkpoint:
    """A diffusers pipeline on disk. `fingerprint` (64 hex digits) names all the bytes that determine its images.

    `revision` is the commit of one that came from the hub.
    """

    source: str
    directory: Path
    fingerprint: str
    architecture: str
    revision: str | None = None


def find_checkpoint(source: str, *, revision: str | None = None, allow_pickle: bool = False) -> Checkpoint:
    """Find a diffusers directory, or fetch a Hugging Face id, and fingerprint it.

    Raises:
        InputError: The directory is no complete pipeline; the message names the first file that is missing or broken.
        WeightsNotFoundError: The hub has no such checkpoint, or cannot be reached and holds no copy here.
    """
    directory = Path(source)
    if not directory.is_dir():
        directory = _fetch(source, revision, allow_pickle)
        revision = directory.name  # the hub's cache names a snapshot by its commit
    files = pipeline_files(directory, allow_pickle=allow_pickle)
    index = json.loads((directory / "model_index.json").read_text(encoding="utf-8"))
    return Checkpoint(source, directory, fingerprint(directory, files), index["_class_name"], revision)


def pipeline_files(directory: Path, *, allow_pickle: bool = False) -> list[Path]:
    """The files of a pipeline that determine its images, relative to `directory`, sorted.

    Raises:
        InputError: model_index.json or a component's folder, config or weights are missing or not there to their end,
            or weights are pickles.
    """
    index = directory / "model_index.json"
    try:
        components = json.loads(index.read_text(encoding="utf-8"))
    except FileNotFoundError:
        cure = "Point `checkpoint` at a directory made by save_pretrained()."
        raise InputError("a diffusers checkpoint with model_index.json", "none", where=directory, cure=cure) from None
    except ValueError as error:
        raise InputError("model_index.json to be JSON", str(error), where=directory, cure="Save it anew.") from None
    if not isinstance(components, dict):
        components = {}
    names = [k for k, v in components.items() if isinstance(v, list) and any(v) and k not in _IRRELEVANT]
    if not names or "_class_name" not in components:
        raise InputError("a pipeline's components", "none", where=index, cure="Save the pipeline anew.")
    files = [Path("model_index.json")]
    _check_classes(index, components, names)
    for name in sorted(names):
        files += _component_files(directory, name, allow_pickle)
    for file in files:
        _check_complete(directory / file)
    return files


def stamp(directory: Path, files: list[Path]) -> str:
    """Names, sizes and times of `files` as 16 hex digits: cheap, and other ones whenever a file was written."""
    facts = [(file.as_posix(), (status := (directory / file).stat()).st_size, status.st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps([str(directory), facts]).encode()).hexdigest()[:16]


def hub_revision(
    source: str, *, revision: str | None = None, lookup: Callable[[str, str | None], str] | None = None
) -> str:
    """The commit (40 hex digits) to which a Hugging Face id points now, or its branch or tag `revision`.

    Args:
        source: `owner/name`.
        revision: A branch, a tag or a commit; a commit is not asked for.
        lookup: Asks for the commit of a source and revision; the Hugging Face hub unless another one is given.

    Raises:
        WeightsNotFoundError: The hub does not know it, or cannot be reached.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # the HTTP library's own errors among them: which library it is changed between versions of the hub's client
    unreachable: tuple[type[BaseException], ...] = (*HfHubHTTPError.__bases__, HFValidationError, OSError)
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    try:
        return (lookup or _ask_hub)(source, revision)
    except unreachable as error:
        cure = f"Check the id and the network. ({type(error).__name__})"
        what = f"the revision `{revision or 'main'}` of `{source}`"
        raise WeightsNotFoundError(what, looked="the Hugging Face hub", cure=cure) from None


def fingerprint(directory: Path, files: list[Path]) -> str:
    """SHA-256 over the names and contents of `files`, 64 hex digits."""
    total = hashlib.sha256()
    for file in sorted(files):
        with (directory / file).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{file.as_posix()}\0{digest}\n".encode())
    return total.hexdigest()


def load_pipeline(checkpoint: Checkpoint, *, dtype: str, device: str, allow_pickle: bool = False) -> DiffusionPipeline:
    """Load the pipeline, without safety checker or progress bar, on `device` (auto: CUDA, then MPS, else CPU)."""
    import torch
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging

    logging.set_verbosity_error()
    extra: dict[str, Any] = (
        {} if "XL" in checkpoint.architecture else {"safety_checker": None, "feature_extractor": None}
    )
    pipeline = DiffusionPipeline.from_pretrained(
        checkpoint.directory,
        dtype=getattr(torch, dtype),
        use_safetensors=None if allow_pickle else True,
        local_files_only=True,
        **extra,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(choose_device(device))


def choose_device(device: str) -> str:
    """`auto` becomes the best device there is; any other name stays."""
    import torch

    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _check_classes(index: Path, components: dict[str, Any], names: list[str]) -> None:
    """Only folders inside, only classes of the two libraries: others would be code that comes with the checkpoint."""
    for name in ["_class_name", *names]:
        value = components[name]
        known = isinstance(value, str) if name == "_class_name" else value[0] in _LIBRARIES
        if not (known and re.fullmatch(r"\w+", name)):
            got = f"`{name}`: {json.dumps(value)}"
            cure = "Code that comes with a checkpoint is not run: export it as a pipeline of diffusers."
            raise InputError("components of diffusers and transformers", got, where=index, cure=cure)


def _component_files(directory: Path, name: str, allow_pickle: bool) -> list[Path]:
    folder = directory / name
    cure = _COPY_AGAIN
    if not folder.is_dir():
        raise InputError(f"the component `{name}`", "no such folder", where=directory, cure=cure)
    found = [path.relative_to(directory) for path in sorted(folder.iterdir()) if path.is_file()]
    configs = [path for path in found if path.suffix in _CONFIG_SUFFIXES]
    if not configs:
        raise InputError(f"a config of `{name}`", "none", where=folder, cure=cure)
    if (folder / "config.json").exists():
        weights = [path for path in found if path.suffix in _WEIGHT_SUFFIXES]
        pickles = [path for path in found if path.suffix in _PICKLE_SUFFIXES]
        if not weights and pickles and not allow_pickle:
            cure = "Convert it to safetensors, or set `allow_pickle: true` if you trust its source."
            raise InputError(f"safetensors weights of `{name}`", f"`{pickles[0].name}`", where=folder, cure=cure)
        if not (weights or pickles):
            raise InputError(f"weights of `{name}` (*.safetensors)", "none", where=folder, cure=cure)
        _check_shards(folder, {path.name for path in weights})
        return configs + (weights or pickles)
    return configs


def _check_shards(folder: Path, weights: set[str]) -> None:
    """Every shard that an index names is there, in the folder itself."""
    for index in sorted(folder.glob(f"*{_SHARDS_SUFFIX}")):
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError("an index with a weight_map", "none", where=index, cure=_COPY_AGAIN) from None
        if lost := sorted(map(str, named - weights)):
            raise InputError("every shard of the weights", f"no `{lost[0]}`", where=folder, cure=_COPY_AGAIN)


def _check_complete(path: Path) -> None:
    """A file that is still being copied is JSON that breaks off, or shorter than its own header says."""
    if path.suffix == ".json":
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError("whole JSON", f"{error}", where=path, cure=_COPY_AGAIN) from None
    elif path.suffix in _WEIGHT_SUFFIXES:
        size, expected = path.stat().st_size, _safetensors_size(path)
        if size != expected:
            got = f"{size} of {expected}" if expected else f"{size} and no header"
            raise InputError("all bytes of the weights", got, where=path, cure=_COPY_AGAIN)


def _safetensors_size(path: Path) -> int | None:
    """How many bytes the file's header promises; None without a whole header.

    https://huggingface.co/docs/safetensors: 8 bytes of length, a JSON header with `data_offsets`, the data.
    """
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > path.stat().st_size:
            return None
        header = stream.read(length)
    try:
        tensors = [value for name, value in json.loads(header).items() if name != "__metadata__"]
        return 8 + length + max((tensor["data_offsets"][1] for tensor in tensors), default=0)
    except (ValueError, AttributeError, TypeError, KeyError, IndexError):
        return None


def _ask_hub(source: str, revision: str | None) -> str:
    from huggingface_hub import HfApi

    return str(HfApi().model_info(source, revision=revision, timeout=_HUB_SECONDS).sha)


def _fetch(source: str, revision: str | None, allow_pickle: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.txt", "*.model", "*.safetensors", *(["*.bin"] if allow_pickle else [])]
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        cure = f"Check the id and the network, or give a local directory. ({type(error).__name__})"
        raise WeightsNotFoundError(
            f"the checkpoint `{source}`", looked="that path, the local hub cache and the Hugging Face hub", cure=cure
        ) from None
