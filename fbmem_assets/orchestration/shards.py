"""Assets whose work is divided among steps, which an executor may run side by side.

Such an asset is a graph: `NAME_shards` says how many parts there are, `NAME_work` does one of them, `NAME` sums up. The
parts are the same whenever it runs, and each leaves out what is finished, so a step may die and run again alone.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import dagster as dg

from fbmem_assets.orchestration.executors import EXECUTOR_VARIABLE, pool_of, retry_policy, step_tags
from fbmem_assets.orchestration.guard import Guard
from fbmem_assets.orchestration.resources import AuditStore
from fbmem_core.errors import InputError

SHARDS_VARIABLE = "FBMEM_SHARDS"
_OF = "_of_"  # mapping keys are 1_of_4, 2_of_4, ...
T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """The `number`-th of `count` parts, from 1 on."""

    number: int
    count: int

    def of(self, items: Sequence[T]) -> list[T]:
        """Items of this part, each `count`-th, so that what belongs together in a file is spread over the parts."""
        return list(items[self.number - 1 :: self.count])

    @property
    def key(self) -> str:
        """Name of the step in Dagster."""
        return f"{self.number}{_OF}{self.count}"

    @classmethod
    def from_key(cls, key: str) -> "Part":
        """The part that a step works on."""
        number, count = key.split(_OF)
        return cls(int(number), int(count))


WHOLE = Part(1, 1)
Work = Callable[[dg.OpExecutionContext, AuditStore, Part], None]


def num_shards() -> int:
    """Into how many steps FBMEM_SHARDS divides sampling, segmentation, comparing and localization; 1 unless set.

    Raises:
        InputError: It is no positive number.
    """
    text = os.environ.get(SHARDS_VARIABLE) or "1"
    if not text.isascii() or not text.isdigit() or not int(text):
        raise InputError("a number of steps from 1 on", f"`{text}`", where=SHARDS_VARIABLE, cure="Set it to one.")
    return int(text)


def sharded_asset(
    summary: Callable[..., dg.MaterializeResult],
    *,
    guard: Guard,
    work: Work,
    description: str,
    **of_asset: Any,
) -> dg.AssetsDefinition:
    """The asset that does `work` in parts and then returns what `summary` says of the whole."""
    name, deps = guard.asset, guard.parents
    pool, tags = pool_of(guard.table), step_tags(guard.table)

    @dg.op(name=f"{name}_shards", ins={dep: dg.In(dg.Nothing) for dep in deps}, out=dg.DynamicOut(dg.Nothing))
    def shards(context, store: AuditStore) -> Iterator[dg.DynamicOutput[None]]:  # type: ignore[no-untyped-def]
        guard.begin(store, context.partition_key)
        count = num_shards()
        for number in range(1, count + 1):
            yield dg.DynamicOutput(None, mapping_key=Part(number, count).key)

    @dg.op(
        name=f"{name}_work",
        ins={"start": dg.In(dg.Nothing)},
        out=dg.Out(dg.Nothing),
        pool=pool,
        tags=tags,
        retry_policy=retry_policy(),
    )
    def one_part(context: dg.OpExecutionContext, store: AuditStore) -> None:
        if guard.reason(store, context.partition_key) is not None:
            return
        part = Part.from_key(context.get_mapping_key())  # type: ignore[arg-type]
        _take_gpu(part)
        try:
            work(context, store, part)
        except Exception as error:
            # it would happen again: only a step whose process is gone runs once more
            raise dg.Failure(f"{error}", allow_retries=False) from error

    # in the same pool: what a mitigation changes must come from the device that it was sampled on
    @dg.op(name=f"{name}_table", ins={"start": dg.In(dg.Nothing)}, out=dg.Out(dg.Nothing), pool=pool, tags=tags)
    def whole(context: dg.OpExecutionContext, store: AuditStore) -> None:
        result = guard.finish(context, store, lambda: summary(context, store))
        context.add_output_metadata(result.metadata or {})
        if result.data_version is not None:
            context.set_data_version(dg.AssetKey(name), result.data_version)

    def graph(**upstream: Any) -> Any:
        return whole(start=shards(**upstream).map(one_part).collect())

    ins: Mapping[str, dg.AssetIn] = {dep: dg.AssetIn(dagster_type=dg.Nothing) for dep in deps}
    return dg.graph_asset(graph, name=name, description=description, ins=ins, **of_asset)  # type: ignore[no-any-return,call-overload]


def _take_gpu(part: Part) -> None:
    """Choose one of several GPUs by the shard, where each step is a process of one machine."""
    if part.count == 1 or os.environ.get(EXECUTOR_VARIABLE) != "multiprocess":
        return
    import torch

    if torch.cuda.device_count() > 1:
        torch.cuda.set_device((part.number - 1) % torch.cuda.device_count())
