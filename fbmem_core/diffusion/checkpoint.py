"""Checkpoints: found, and fingerprinted by all the bytes that determine their images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fbmem_core.diffusion.adapters import LoadedAdapter
from fbmem_core.diffusion.architectures import ARCHITECTURES
from fbmem_core.diffusion.hub import fetch
from fbmem_core.diffusion.pipeline_files import PipelineFiles, check_safetensors, read_pipeline_files, weights_dtype
from fbmem_core.errors import InputError


@dataclass(frozen=True)
class Checkpoint:
    """A diffusers pipeline on disk.

    Attributes:
        source: As the audit file names it.
        directory: Of the pipeline; of its configs alone where the weights are a single file.
        fingerprint: 64 hex digits, which name all the bytes that determine its images, adapters included.
        architecture: The pipeline's class.
        revision: The commit of one that came from the hub.
        variant: Of the weights (`fp16`), None for plain ones.
        single_file: A safetensors file with the weights of all components.
        adapters: On top.
        dtype: In which the network's weights are stored.
    """

    source: str
    directory: Path
    fingerprint: str
    architecture: str
    revision: str | None = None
    variant: str | None = None
    single_file: Path | None = None
    adapters: tuple[LoadedAdapter, ...] = ()
    dtype: str = "float32"

    @classmethod
    def from_record(cls, fields: Mapping[str, Any]) -> Checkpoint:
        """Checkpoint from the JSON of its fields, as `dataclasses.asdict` gives them."""
        single_file = fields.get("single_file")
        adapters = [LoadedAdapter(**{**one, "path": Path(one["path"])}) for one in fields.get("adapters", ())]
        changes = {
            "directory": Path(fields["directory"]),
            "single_file": None if single_file is None else Path(single_file),
            "adapters": tuple(adapters),
        }
        return cls(**{**fields, **changes})


def find_checkpoint(
    source: str,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    config: Path | None = None,
    adapters: Sequence[LoadedAdapter] = (),
) -> Checkpoint:
    """Find a diffusers directory or a single file, or fetch a Hugging Face id, and fingerprint it.

    Args:
        source: A path or `owner/name`.
        revision: Of the hub: a branch, a tag or a commit.
        allow_pickle: Whether weights may be pickles.
        config: Of a single file: a diffusers directory with the configs and tokenizers of its architecture.
        adapters: On top of it.

    Raises:
        InputError: It is no complete pipeline, or one that cannot be audited; the message names the first file that is
            missing, broken or wrong.
        WeightsNotFoundError: The hub has no such checkpoint, or cannot be reached and holds no copy here.
    """
    path = Path(source)
    if path.is_file():
        return _find_single_file(source, path, config, tuple(adapters))
    if not path.is_dir():
        path = fetch(source, revision, allow_pickle=allow_pickle)
        revision = path.name  # the hub's cache names a snapshot by its commit
    files = read_pipeline_files(path, allow_pickle=allow_pickle)
    return Checkpoint(
        source=source,
        directory=path,
        fingerprint=_with_adapters(fingerprint(path, files.files), adapters),
        architecture=files.class_name,
        revision=revision,
        variant=files.variant,
        adapters=tuple(adapters),
        dtype=weights_dtype(path / _network_weights(files)),
    )


def check_fingerprint(checkpoint: Checkpoint, *, allow_pickle: bool = False) -> PipelineFiles:
    """Hash again what is about to be loaded.

    Raises:
        InputError: It is not what was registered.
    """
    with_weights = checkpoint.single_file is None
    files = read_pipeline_files(checkpoint.directory, allow_pickle=allow_pickle, with_weights=with_weights)
    now = fingerprint(checkpoint.directory, files.files)
    if checkpoint.single_file is not None:
        now = _with_file(now, checkpoint.single_file)
    now = _with_adapters(now, checkpoint.adapters)
    if now != checkpoint.fingerprint:
        cure = "Restore its files, or register the audit again: that makes a partition of its own."
        expected, got = f"the weights that were registered ({checkpoint.fingerprint[:12]})", f"others ({now[:12]})"
        raise InputError(expected, got, where=checkpoint.single_file or checkpoint.directory, cure=cure)
    return files


def stamp(directory: Path, files: Sequence[Path]) -> str:
    """Names, sizes and times of `files` as 16 hex digits: cheap, and other ones whenever a file was written."""
    facts = [(file.as_posix(), (status := (directory / file).stat()).st_size, status.st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps([str(directory), facts]).encode()).hexdigest()[:16]


def fingerprint(directory: Path, files: Sequence[Path]) -> str:
    """SHA-256 over the names and contents of `files`, 64 hex digits."""
    total = hashlib.sha256()
    for file in sorted(files):
        total.update(f"{file.as_posix()}\0{_sha256(directory / file)}\n".encode())
    return total.hexdigest()


def _find_single_file(source: str, path: Path, config: Path | None, adapters: tuple[LoadedAdapter, ...]) -> Checkpoint:
    if path.suffix != ".safetensors":
        cure = "Convert it to safetensors, or export it as a diffusers directory."
        raise InputError("a single file of safetensors", f"`{path.name}`", where=path.parent, cure=cure)
    if config is None:
        cure = "Name a diffusers directory of its architecture in `config`: configs and tokenizers are read there."
        raise InputError("`config` beside a single file", "none", where=path, cure=cure)
    check_safetensors(path)
    files = read_pipeline_files(config, with_weights=False)
    total = _with_file(fingerprint(config, files.files), path)
    return Checkpoint(
        source=source,
        directory=config,
        fingerprint=_with_adapters(total, adapters),
        architecture=files.class_name,
        single_file=path,
        adapters=adapters,
        dtype=weights_dtype(path),
    )


def _network_weights(files: PipelineFiles) -> Path:
    folder = ARCHITECTURES[files.class_name].network
    weights = [file for file in files.files if file.parts[0] == folder and file.suffix != ".json"]
    return weights[0]


def _with_file(total: str, path: Path) -> str:
    return hashlib.sha256(f"{total}\n{_sha256(path)}".encode()).hexdigest()


def _with_adapters(total: str, adapters: Sequence[LoadedAdapter]) -> str:
    for adapter in adapters:
        facts = [total, adapter.kind, adapter.weight, adapter.token, _sha256(adapter.path)]
        total = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    return total


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
