"""The Dagster instance that a command runs in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from fbmem_core.errors import InputError

if TYPE_CHECKING:
    import dagster as dg

INSTANCE_VARIABLE = "FBMEM_DAGSTER"
HOME_VARIABLE = "DAGSTER_HOME"
_CONFIG = "dagster.yaml"
_INSTANCE_CONFIG = "telemetry: {enabled: false}\nnux: {enabled: false}\n"
# a command shows on the terminal what it prints: nothing is captured, and no process watches over a capture
_NOT_CAPTURED = {
    "compute_logs": {
        "module": "dagster._core.storage.noop_compute_log_manager",
        "class": "NoOpComputeLogManager",
    }
}


def open_instance(store: str) -> dg.DagsterInstance:
    """The Dagster instance: DAGSTER_HOME, else fbmem's own project in the current folder, else a small one inside the
    store (of an object store, in the local folder that belongs to it).

    Raises:
        InputError: DAGSTER_HOME is no absolute path of a folder, or the store cannot be written.
    """
    from fbmem_core.store.tables import Store

    storage = Store(store).local / "dagster"
    try:
        storage.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault(INSTANCE_VARIABLE, str(storage))
        home = _home(storage)
        if home == storage and not (home / _CONFIG).exists():
            (home / _CONFIG).write_text(_INSTANCE_CONFIG, encoding="utf-8")
    except OSError as error:
        cure = "Mend that, or name another store."
        raise InputError("a store that can be written", error.strerror, where=storage, cure=cure) from None
    import dagster as dg
    from dagster._core.instance.ref import InstanceRef

    os.environ[HOME_VARIABLE] = str(home)
    ref = InstanceRef.from_dir(str(home), overrides=_NOT_CAPTURED)  # type: ignore[arg-type]
    return dg.DagsterInstance.from_ref(ref)


def _home(storage: Path) -> Path:
    named = os.environ.get(HOME_VARIABLE)
    if not named:
        return Path.cwd() if _is_ours(Path(_CONFIG)) else storage
    home = Path(named)
    if not home.is_absolute() or not home.is_dir():
        got = f"`{named}`, which is not absolute" if not home.is_absolute() else f"no such folder `{named}`"
        cure = "Set it to the absolute path of a folder, or unset it."
        raise InputError("DAGSTER_HOME to be the absolute path of a folder", got, cure=cure)
    return home


def _is_ours(config: Path) -> bool:
    """True for fbmem's own dagster.yaml: that of another project, which may lie in the current folder, is not."""
    try:
        return INSTANCE_VARIABLE in config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
