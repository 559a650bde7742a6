"""Checkpoints of the Hugging Face hub: which commit, and no more of its files than are loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from fbmem_core.diffusion.pipeline_files import CONFIG_SUFFIXES, INDEX, IRRELEVANT
from fbmem_core.diffusion.weight_files import choose_variant, choose_weights, is_index, weight_sets
from fbmem_core.errors import WeightsNotFoundError

_HUB_SECONDS = 20.0


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


def fetch(source: str, revision: str | None, *, allow_pickle: bool) -> Path:
    """The folder of a snapshot in the hub's cache, with the files that are loaded; fetched where they are not there.

    Raises:
        WeightsNotFoundError: The hub has no such checkpoint, or cannot be reached and holds no copy here.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(source, revision=revision, allow_patterns=[INDEX]))
        try:
            names = HfApi().list_repo_files(source, revision=folder.name)
        except (HfHubHTTPError, OSError):
            return folder  # without a network: what is there
        index = json.loads((folder / INDEX).read_text(encoding="utf-8")) if (folder / INDEX).is_file() else {}
        patterns = needed_files(names, index, allow_pickle=allow_pickle)
        return Path(snapshot_download(source, revision=folder.name, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        cure = f"Check the id and the network, or give a local directory. ({type(error).__name__})"
        raise WeightsNotFoundError(
            f"the checkpoint `{source}`", looked="that path, the local hub cache and the Hugging Face hub", cure=cure
        ) from None


def needed_files(names: Sequence[str], index: dict[str, object], *, allow_pickle: bool) -> list[str]:
    """Files of a repository that are loaded: configs, and one set of weights for each component.

    >>> names = ["model_index.json", "unet/config.json", "unet/model.safetensors", "unet/model.fp16.safetensors"]
    >>> needed_files(names + ["all-in-one.safetensors"], {"unet": ["diffusers", "X"]}, allow_pickle=False)
    ['model_index.json', 'unet/config.json', 'unet/model.safetensors']
    """
    parts = {name for name, value in index.items() if isinstance(value, list) and any(value)} - IRRELEVANT
    of_part = {part: [name.split("/")[1] for name in names if re.fullmatch(rf"{part}/[^/]+", name)] for part in parts}
    sets = {part: weight_sets(files) for part, files in of_part.items()}
    variant = choose_variant(sets, allow_pickle=allow_pickle)
    needed = [INDEX]
    for part, files in sorted(of_part.items()):
        kept = {name for name in files if Path(name).suffix in CONFIG_SUFFIXES and not is_index(name)}
        chosen = choose_weights(sets[part], variant=variant, allow_pickle=allow_pickle)
        if chosen is not None:
            kept |= {*chosen.files, *([chosen.index] if chosen.index else [])}
        needed += [f"{part}/{name}" for name in sorted(kept)]
    return needed


def _ask_hub(source: str, revision: str | None) -> str:
    from huggingface_hub import HfApi

    return str(HfApi().model_info(source, revision=revision, timeout=_HUB_SECONDS).sha)
