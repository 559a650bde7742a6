"""An audit file, one YAML file: loaded, validated and its paths resolved, with one clear line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from reprlib import Repr
from typing import Any

import yaml
from pydantic import ValidationError

from fbmem_core.audit.config import Audit
from fbmem_core.errors import InputError
from fbmem_core.inputs.addresses import is_url
from fbmem_core.retrieval.settings import SimilarityConfig

_SHORT = Repr()  # YAML's aliases can make a list whose text fills the memory
_SHORT.maxlevel = 2


class _Loader(yaml.SafeLoader):
    """YAML in which no key may stand twice: of two values one would do nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    message = f"the key `{key.value}` stands twice"
                    raise yaml.constructor.ConstructorError(None, None, message, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_audit(path: Path) -> Audit:
    """Read and validate an audit file.

    Raises:
        InputError: The file is missing or no YAML mapping, a key is unknown, a value is impossible, or a path in it
            leads nowhere. The message names the file, the key and the cure.
    """
    if not path.is_file():
        raise InputError("an audit file", "no such file", where=path, cure="Give the path of a YAML audit file.")
    try:
        data = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no date, too long a number
        reason = str(error).replace("\n", " ")
        raise InputError("a YAML mapping", f"text that is no YAML ({reason})", where=path, cure="Mend it.") from None
    if not isinstance(data, dict):
        raise InputError("a YAML mapping", type(data).__name__, where=path, cure="Write keys such as `name:`.")
    try:
        audit = Audit.model_validate(data)
    except ValidationError as error:
        raise _one_line(error, path) from None
    return _resolve_paths(audit, path)


def parse_similarity(values: dict[str, Any]) -> SimilarityConfig:
    """Settings of the comparison, from the options of a command; raises InputError as `load_audit` does."""
    try:
        return SimilarityConfig.model_validate(values)
    except ValidationError as error:
        raise _one_line(error, "the options") from None


def dump_audit(audit: Audit) -> str:
    """The audit as JSON with every default written out; `Audit.model_validate_json` reads it back."""
    return json.dumps(audit.model_dump(mode="json"), indent=1, sort_keys=True)


def _resolve_paths(audit: Audit, file: Path) -> Audit:
    folder = file.parent.resolve()
    changes: dict[str, Any] = {}
    for key in ("prompts", "references", "truth", "twin", "policy", "config"):
        value = getattr(audit, key)
        if value is None:
            continue
        if key == "references" and is_url(value):
            continue
        path = folder / Path(value).expanduser()
        changes[key] = str(path) if key == "references" else path
        if not _exists(path):
            raise InputError(f"{key} to be an existing path", f"`{value}`", where=file, cure=_relative_cure(key))
    if _is_path(audit.checkpoint, folder):
        directory = folder / Path(audit.checkpoint).expanduser()
        if not (_exists(directory) and (directory.is_dir() or directory.suffix == ".safetensors")):
            cure = _relative_cure("checkpoint") + " A Hugging Face id has the form owner/name."
            raise InputError("checkpoint to be a diffusers directory", f"`{audit.checkpoint}`", where=file, cure=cure)
        changes["checkpoint"] = str(directory.resolve())
    changes["adapters"] = [
        adapter.model_copy(update={"path": _existing("adapters", adapter.path, file)}) for adapter in audit.adapters
    ]
    return audit.model_copy(update=changes | _resolve_sections(audit, file))


def _resolve_sections(audit: Audit, file: Path) -> dict[str, Any]:
    sections: dict[str, dict[str, Any]] = {}
    if audit.segmentation.model.endswith(".onnx"):
        sections["segmentation"] = {"model": str(_existing("segmentation.model", audit.segmentation.model, file))}
    prompts = audit.neurons.non_memorized_prompts
    if prompts is not None:
        sections["neurons"] = {"non_memorized_prompts": _existing("neurons.non_memorized_prompts", prompts, file)}
    for section in ("mitigations", "thresholds"):
        held_out = getattr(audit, section).held_out
        if held_out is not None:
            sections[section] = {"held_out": _existing_folder(f"{section}.held_out", held_out, file)}
    for key in ("descriptor_weights", "sscd"):
        weights = getattr(audit.similarity, key)
        if weights is not None:
            sections.setdefault("similarity", {})[key] = _existing(f"similarity.{key}", weights, file)
    of_clusters = file.parent.resolve() / audit.clusters.weights
    if _exists(of_clusters) and of_clusters.is_file():  # else it is a tag
        sections["clusters"] = {"weights": str(of_clusters)}
    return {name: getattr(audit, name).model_copy(update=values) for name, values in sections.items()}


def _existing(key: str, value: Path | str, file: Path) -> Path:
    path = file.parent.resolve() / value
    if not (_exists(path) and path.is_file()):
        raise InputError(f"{key} to be an existing file", f"`{value}`", where=file, cure=_relative_cure(key))
    return path.resolve()


def _existing_folder(key: str, value: Path, file: Path) -> Path:
    folder = file.parent.resolve() / value.expanduser()
    if not (_exists(folder) and folder.is_dir()):
        raise InputError(f"{key} to be an existing folder", f"`{value}`", where=file, cure=_relative_cure(key))
    return folder.resolve()


def _is_path(checkpoint: str, folder: Path) -> bool:
    looks_like_path = checkpoint.startswith((".", "/", "~")) or checkpoint.count("/") != 1
    return looks_like_path or _exists(folder / checkpoint)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _relative_cure(key: str) -> str:
    return f"Mend `{key}`: paths are relative to the audit file's folder."


def _one_line(error: ValidationError, path: Path | str) -> InputError:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-"))
    if first["type"] == "extra_forbidden":
        keys = sorted(_known_keys(first["loc"][:-1]))
        return InputError(f"only known keys ({', '.join(keys)})", f"`{key}`", where=path, cure="Remove or rename it.")
    if first["type"] == "missing":
        return InputError(f"the key `{key}`", "none", where=path, cure=f"Add `{key}:`.")
    what = first["msg"].removeprefix("Input ").removeprefix("Value error, ").replace("should ", "to ", 1)
    got = f"`{_SHORT.repr(first['input']) if isinstance(first['input'], (list, dict)) else first['input']}`"
    return InputError(f"{key} {what}", got, where=path, cure=f"Change `{key}`.")


def _known_keys(loc: tuple[int | str, ...]) -> list[str]:
    model: Any = Audit
    for part in loc:
        model = model.model_fields[str(part)].annotation
    return list(model.model_fields)
