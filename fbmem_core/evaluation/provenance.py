"""Provenance of a published figure: commit, code, checkpoint, seeds and versions, written beside it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_PACKAGES = ("fbmem", "torch", "diffusers", "transformers", "numpy", "polars", "scipy")


def provenance(*, modules: Iterable[str], fingerprints: dict[str, str], seeds: Sequence[int]) -> dict[str, Any]:
    """Provenance of figures.

    Args:
        modules: Names of the modules whose code the figures depend on.
        fingerprints: Of the checkpoints, by name.
        seeds: Of the images.

    Returns:
        `commit` (None outside a repository), `changed` (whether files differ from it), `code` by module,
        `fingerprints`, `seeds`, `versions`: as JSON can hold them.
    """
    root = Path(__file__).parents[2]
    return {
        "commit": _git(root, "rev-parse", "HEAD"),
        "changed": bool(_git(root, "status", "--porcelain", "--untracked-files=no")),
        "code": code_digests(modules),
        "fingerprints": fingerprints,
        "seeds": list(seeds),
        "versions": {"python": sys.version.split()[0]} | {name: _version(name) for name in _PACKAGES},
    }


def code_digests(modules: Iterable[str]) -> dict[str, str]:
    """The first 16 hex digits of the SHA-256 of each module's source, by its name.

    >>> sorted(code_digests(["fbmem_core.labels"]))
    ['fbmem_core.labels']
    """
    digests = {}
    for name in sorted(set(modules)):
        spec = find_spec(name)
        assert spec is not None and spec.origin is not None, name
        digests[name] = hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()[:16]
    return digests


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
