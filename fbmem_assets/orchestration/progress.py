"""Progress: one bar at a time on a terminal, a plain line now and then elsewhere, with a time left that holds."""

import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import TypeVar

import dagster as dg
from tqdm import tqdm

_LINE_EVERY_SECONDS = 30.0
_STAGES: list[str] = []  # in order, and the stage of each asset: see `announce_stages`
_STAGE_OF: dict[str, str | None] = {}
T = TypeVar("T")


def track(
    context: dg.AssetExecutionContext | dg.OpExecutionContext,
    items: Iterable[T],
    *,
    what: str,
    total: int | None = None,
    batch: int = 1,
) -> Iterator[T]:
    """Pass `items` on, with a bar on the terminal and a line with the time left in Dagster's log every 30 seconds.

    `total` is needed where `items` has no length. Items that come in batches of `batch` are counted by batches, for
    the first of a batch comes when all of it is done.
    """
    total = total if total is not None else len(items) if isinstance(items, Sized) else None
    if total == 0:
        return
    progress = Progress(f"{stage_number(context)}{what}", total)
    logged = time.monotonic()
    try:
        for number, item in enumerate(items):
            if number % batch == 0:
                progress.advance(min(batch, total - number) if total else 1)
            if time.monotonic() - logged >= _LINE_EVERY_SECONDS:
                logged = time.monotonic()
                context.log.info(progress.line())
            yield item
    finally:
        progress.close()


class Progress:
    """The progress of one piece of work. The first step, which loads what is needed, does not count for the rest."""

    def __init__(self, what: str, total: int | None) -> None:
        self._what, self._total, self._done = what, total, 0
        self._started = self._written = time.monotonic()
        self._first = 0
        self._bar = None
        if sys.stderr.isatty():
            form = None if total else "{desc}: {n} [{elapsed}]"
            size = shutil.get_terminal_size()  # 80 x 24 where a terminal does not know its size
            self._bar = tqdm(
                total=total, desc=what, unit="", mininterval=0.5, smoothing=0, leave=False, bar_format=form,
                ncols=size.columns, nrows=size.lines,
            )  # fmt: skip

    def advance(self, steps: int = 1) -> None:
        """So many more steps are done."""
        self._done += steps
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(steps)
        if self._done == steps:  # the first
            self._first, self._started = steps, now
            if self._bar is not None:
                self._bar.initial, self._bar.start_t = self._bar.n, self._bar._time()
        if self._bar is None and now - self._written >= _LINE_EVERY_SECONDS:
            self._written = now
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        """Progress so far, and the time that is left."""
        counted = self._done - self._first
        text = f"{self._what}: {self._done} of {self._total or '?'}"
        if not (self._total and counted):
            return text
        seconds = (time.monotonic() - self._started) / counted * (self._total - self._done)
        return f"{text}, about {_duration(seconds)} left"

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def stage_number(context: dg.AssetExecutionContext | dg.OpExecutionContext) -> str:
    """`[3/14] ` for an asset of the third stage; empty for a step that belongs to none."""
    op = getattr(context, "op_execution_context", context)
    asset = str(op.op_handle).split(".")[0]
    stage = _STAGE_OF.get(asset)
    return f"[{_STAGES.index(stage) + 1}/{len(_STAGES)}] " if stage in _STAGES else ""


def announce_stages(stages: Sequence[str], assets: Iterable[object]) -> None:
    """Have lines of progress say which stage of how many they are of; `stages` in order, `assets` of all of them."""
    _STAGES[:] = stages
    for asset in assets:
        if isinstance(asset, dg.AssetsDefinition):
            _STAGE_OF.update({key.to_user_string(): group for key, group in asset.group_names_by_key.items()})
