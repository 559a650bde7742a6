"""`fbmem neurons`: neuron sets out of a store; `fbmem deactivate`: into a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from fbmem_assets.orchestration.resources import store_option
from fbmem_core.errors import InputError
from fbmem_core.neurons import Layers

if TYPE_CHECKING:
    from fbmem_core.neurons.layers import NeuronSet
    from fbmem_core.store.tables import Store


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--partition", help="Of which audited checkpoint; needed where the store holds several.")
@click.option("--by", type=click.Choice(["prompt", "cluster"]), default="prompt", show_default=True)
@click.option("--stage", type=click.Choice(["refined", "initial"]), default="refined", show_default=True)
@store_option
def neurons(file: Path, partition: str | None, by: str, stage: str, store: str) -> None:
    """Write the neuron sets that an audit found to FILE: .parquet, .safetensors, or .csv as NeMo's code reads it."""
    from fbmem_core.neurons.files import write_neuron_sets
    from fbmem_core.store.tables import Store

    tables = Store(store)
    key = one_partition(tables, "activation_statistics", partition)
    sets, layers = _sets(tables, key, by, stage)
    if not file.parent.is_dir():
        raise InputError("a folder to write into", "none", where=file.parent, cure="Create it.")
    write_neuron_sets(sets, file, layers)
    total = len(tables.read("activation_statistics", key))
    largest = max(map(len, sets.values()), default=0)
    click.echo(f"{file}: {len(sets)} sets, the largest of {largest} neurons ({largest / total:.1%} of {total})")


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, file_okay=False))
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--name", "names", multiple=True, help="Only this set (a prompt_id, prompt or cluster); all by default.")
@click.option("--factor", type=click.FloatRange(0, 1, max_open=True), default=0.0, show_default=True)
@click.option("--layers", type=click.Choice(get_args(Layers)), default="released", show_default=True)
def deactivate(checkpoint: Path, file: Path, out: Path, names: tuple[str, ...], factor: float, layers: str) -> None:
    """Copy CHECKPOINT, a diffusers directory, to OUT with the neurons of FILE switched off, or multiplied by a factor.

    Any diffusers user can load OUT. The neurons are off for every prompt, not for their own alone.
    """
    from fbmem_core.diffusion.checkpoint import find_checkpoint
    from fbmem_core.diffusion.loading import load_pipeline
    from fbmem_core.neurons.files import read_neuron_sets
    from fbmem_core.neurons.layers import union, value_layers
    from fbmem_core.neurons.weights import write_mitigated_checkpoint

    original = find_checkpoint(str(checkpoint))
    # only a CSV's lists do not name their layers
    listed = value_layers(load_pipeline(original, device="cpu"), layers) if file.suffix == ".csv" else ()  # type: ignore[arg-type]
    sets = read_neuron_sets(file, listed)
    unknown = [name for name in names if name not in sets]
    if unknown:
        examples = ", ".join(list(sets)[:5])
        raise InputError("the name of a set", f"`{unknown[0]}`", where=file, cure=f"It holds {examples} ...")
    chosen = union(sets[name] for name in names or sets)
    changed = write_mitigated_checkpoint(original.directory, out, chosen, factor=factor)
    for tensor, share in changed.items():
        click.echo(f"{tensor}: {len(chosen.at(tensor.rpartition('.')[0]))} rows, {share:.1%} of its norm")
    click.echo(f"{out}: {len(chosen)} neurons multiplied by {factor:g}")


def one_partition(tables: Store, table: str, partition: str | None) -> str:
    """The partition that was named, or the only one of which the table holds anything; else InputError."""
    partitions = tables.partitions(table)
    if partition is None and len(partitions) == 1:
        return partitions[0]
    if partition not in partitions:
        got = f"`{partition}`" if partition else f"{len(partitions)} of them"
        cure = f"Give --partition, one of: {', '.join(partitions)}." if partitions else "Run `fbmem audit` first."
        raise InputError(f"one partition of `{table}`", got, where=tables.root, cure=cure)
    return partition


def _sets(tables: Store, key: str, by: str, stage: str) -> tuple[dict[str, NeuronSet], list[str]]:
    """The sets by name, and the layers that were searched, in the order of the network."""
    from fbmem_core.neurons.layers import block_order, named_sets

    layers = sorted(set(tables.read("activation_statistics", key)["layer"]), key=block_order)
    if by == "prompt":
        rows = tables.read("neurons", key)
        rows = rows.filter(rows["stage"] == stage).select("prompt_id", "layer", "neuron")
    else:
        rows = tables.read("cluster_neurons", key).select("cluster", "layer", "neuron")
    return named_sets(rows.iter_rows()), layers
