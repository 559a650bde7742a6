"""One run of a partition at a time: a lock that ends with the process that holds it, however that ends."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fbmem_core.errors import InputError


@contextmanager
def partition_lock(folder: Path, checkpoint: str, holder: str) -> Iterator[None]:
    """Hold the partition for one run; several processes of the same run may hold it together.

    Args:
        folder: Of a local disk, where the lock files lie.
        checkpoint: The partition.
        holder: Names the run in the message that another one gets.

    Raises:
        InputError: Another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{checkpoint}.lock").open("a+") as file:
        if _took(file):
            file.truncate(0)
            file.write(holder)
            file.flush()
        # giving up the exclusive lock and taking the shared one are two acts, between which another run may come
        fcntl.flock(file, fcntl.LOCK_SH)
        file.seek(0)
        present = file.read()
        if present != holder:
            cure = "Wait until it ends, or stop it."
            raise InputError(f"no other run of {checkpoint}", f"one at work: {present}", cure=cure)
        yield


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock file `path` of a local disk alone; who comes second waits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _took(file: IO[str]) -> bool:
    """Lock it for this process alone, if nobody has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
