"""The manifest of an audited checkpoint: the SHA-256 of every file that its findings rest on, signed with a key."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fbmem_core.errors import InputError
from fbmem_core.store.images import file_sha256
from fbmem_core.store.schemas import TABLES
from fbmem_core.store.tables import TABLES_DIR, Store, is_foreign

MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.minisig"
_MAY_CHANGE = frozenset({"reviews", "checks", "records"})  # people and later runs add to them


def write_manifest(store: Store, checkpoint: str, report: Path, *, beside: Iterable[Path] = ()) -> Path:
    """Write `manifest.json` beside a report.

    It names the tables of the checkpoint (but for reviews, checks and records, which later runs add to), its images and
    mattes, the references, the model's fingerprint and the report's own files.

    Returns:
        Its path.
    """
    files: dict[str, str] = {}
    for table in TABLES:
        if table not in _MAY_CHANGE:
            folder = store.root / TABLES_DIR / table / f"partition={checkpoint}"
            for path in sorted(folder.glob("*.parquet")):
                if not is_foreign(path):
                    files[path.relative_to(store.root).as_posix()] = file_sha256(path)
    for table in ("generations", "masks"):
        for relative in store.read(table, checkpoint)["path"].drop_nulls().to_list():
            files[relative] = file_sha256(store.root / relative)
    references = store.read("reference_images", checkpoint).filter(status="ok")
    content: dict[str, Any] = {
        "checkpoint": checkpoint,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "fingerprint": store.read("checkpoints", checkpoint)["fingerprint"].to_list(),
        "files": files,
        "references": dict(references.select("reference_id", "sha256").iter_rows()),
        "report": {path.name: file_sha256(path) for path in (report, *beside)},
    }
    path = report.with_name(MANIFEST)
    Store(report.parent).write_bytes(MANIFEST, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
    return path


def read_manifest(path: Path) -> dict[str, Any]:
    """The content of a manifest.

    Raises:
        InputError: There is none, or it is no JSON.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError("a manifest", "none", where=path, cure="Write one with `fbmem report`.") from None
    except ValueError as error:
        raise InputError("a manifest", error, where=path, cure="Write it anew with `fbmem report`.") from None


def sign(manifest: Path, key: Path) -> Path:
    """Sign a manifest with a secret key of minisign, whose command must be installed; it asks for the key's password.

    Returns:
        The path of the signature.

    Raises:
        InputError: There is no such key or command, or it refuses.
    """
    _run_minisign(["-S", "-s", str(key), "-m", str(manifest), "-x", str(manifest.with_name(SIGNATURE))], key)
    return manifest.with_name(SIGNATURE)


def check_signature(manifest: Path, public_key: Path) -> None:
    """Check the signature beside a manifest against a public key of minisign.

    Raises:
        InputError: The signature is missing, or is not that of this key over this manifest.
    """
    signature = manifest.with_name(SIGNATURE)
    _run_minisign(["-V", "-p", str(public_key), "-m", str(manifest), "-x", str(signature)], public_key)


def _run_minisign(arguments: list[str], key: Path) -> None:
    if not key.is_file():
        raise InputError("a key of minisign", "no such file", where=key, cure="Make one: `minisign -G`.")
    if shutil.which("minisign") is None:
        raise InputError("the command minisign", "none", cure="Install it, for example `apt-get install minisign`.")
    # on a terminal it asks for the key's password, on standard error: standard output is for results
    shown: dict[str, Any] = {"stdout": 2, "stderr": 2} if sys.stdin.isatty() else {"capture_output": True}
    done = subprocess.run(["minisign", *arguments], text=True, check=False, **shown)
    if done.returncode:
        reason = (done.stderr or done.stdout).strip() or f"status {done.returncode}"
        raise InputError("a signature that minisign accepts", reason, where=key, cure="Check key and manifest.")
