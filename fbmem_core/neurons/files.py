"""Neuron sets as files, named by prompt or cluster.

Parquet (a row per neuron) and safetensors (a tensor of indices for each set and layer) hold any layers; `;` CSV as
NeMo's code writes it has a row per prompt, whose columns of neurons hold a list of indices for each layer.
"""

from __future__ import annotations

import ast
import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from fbmem_core.errors import InputError
from fbmem_core.neurons.layers import NeuronSet, named_sets

INITIAL, REFINED = "Initial Neurons", "Refined Neurons"
PROMPT = "Caption"
_DELIMITER = ";"
_COLUMNS = ("name", "layer", "neuron")
SUFFIXES = (".parquet", ".safetensors", ".csv")


@dataclass(frozen=True)
class NemoRow:
    """One prompt of NeMo's file. `neurons`: by column, the indices of each layer, repeated ones too.

    `columns` holds every column's text, in the order of the file, for what is not neurons.
    """

    columns: Mapping[str, str]
    neurons: Mapping[str, tuple[tuple[int, ...], ...]]

    @property
    def prompt(self) -> str:
        """The prompt's text."""
        return self.columns[PROMPT]

    def neuron_set(self, layers: Sequence[str], column: str = REFINED) -> NeuronSet:
        """The neurons of a column; `layers` are those that its lists stand for, in the order of `value_layers`.

        Raises:
            InputError: There are not as many lists as layers.
        """
        lists = self.neurons[column]
        if len(lists) != len(layers):
            cure = "Use the file of the same architecture."
            raise InputError(f"{len(layers)} lists of neurons", len(lists), where=f"`{self.prompt}`", cure=cure)
        return NeuronSet.of(dict(zip(layers, lists, strict=True)))


def read_nemo_csv(path: Path) -> list[NemoRow]:
    """The rows of a CSV file that NeMo's code writes.

    Raises:
        InputError: The file is missing or lacks `Caption` or `Refined Neurons`, a prompt stands there twice, or a row
            holds no list of lists of indices.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        cure = "Give the path of a CSV file in UTF-8."
        raise InputError("a CSV file of neurons", type(error).__name__, where=path, cure=cure) from None
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=_DELIMITER)
    names = list(reader.fieldnames or ())
    missing = [name for name in (PROMPT, REFINED) if name not in names]
    if missing:
        cure = f"Its columns are {', '.join(names) or 'none'}."
        raise InputError(f"a column `{missing[0]}`", "none", where=path, cure=cure)
    rows: dict[str, NemoRow] = {}
    for columns in reader:
        where = f"{path}, line {reader.line_num}"
        if None in columns or None in columns.values():
            raise InputError(f"{len(names)} columns", "another number", where=where, cure="Mend the line.")
        if columns[PROMPT] in rows:
            raise InputError(
                "each prompt once", f"`{columns[PROMPT]}` twice", where=where, cure="Keep one row a prompt."
            )
        neurons = {name: _parse(columns[name], where) for name in (INITIAL, REFINED) if name in names}
        rows[columns[PROMPT]] = NemoRow(columns, neurons)
    return list(rows.values())


def write_nemo_csv(rows: Iterable[NemoRow]) -> str:
    """The text of the file, as NeMo's code writes it: what `read_nemo_csv` read comes out the same."""
    out = io.StringIO(newline="")
    writer = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(out, list(row.columns), delimiter=_DELIMITER)
            writer.writeheader()
        lists = {name: str([list(of_layer) for of_layer in layers]) for name, layers in row.neurons.items()}
        writer.writerow({**row.columns, **lists})
    return out.getvalue()


def nemo_row(prompt: str, initial: NeuronSet, refined: NeuronSet, layers: Sequence[str], **columns: str) -> NemoRow:
    """A row for `write_nemo_csv`; `columns` are those that NeMo's have besides, empty by default.

    Raises:
        InputError: A set has a neuron in another layer: it would be lost.
    """
    unlisted = (set(initial.indices) | set(refined.indices)) - set(layers)
    if unlisted:
        cure = "NeMo's format has no place for other layers: write Parquet or safetensors."
        raise InputError(f"neurons of these {len(layers)} layers alone", min(unlisted), where=f"`{prompt}`", cure=cure)
    named = {INITIAL: initial, REFINED: refined}
    lists = {name: tuple(tuple(sorted(neurons.at(layer))) for layer in layers) for name, neurons in named.items()}
    names = (PROMPT, "URL", INITIAL, "Initial SSIM", REFINED, "Refined SSIM")
    return NemoRow({name: columns.get(name, "") for name in names} | {PROMPT: prompt}, lists)


def read_neuron_sets(path: Path, layers: Sequence[str]) -> dict[str, NeuronSet]:
    """Neuron sets by name from a file of any of the three formats; a CSV's lists stand for `layers`.

    Raises:
        InputError: The suffix is none of theirs, or the file cannot be read.
    """
    if path.suffix == ".csv":
        return {row.prompt: row.neuron_set(layers) for row in read_nemo_csv(path)}
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix == ".parquet":
        return _read_parquet(path)
    raise _unknown_suffix(path)


def write_neuron_sets(sets: Mapping[str, NeuronSet], path: Path, layers: Sequence[str]) -> None:
    """Write what `read_neuron_sets` reads; a CSV gets the same neurons as initial and refined ones.

    Raises:
        InputError: The suffix is none of the three, or a CSV cannot hold a neuron.
    """
    partial = path.with_name(f".{path.name}.partial")
    if path.suffix == ".csv":
        text = write_nemo_csv(nemo_row(name, neurons, neurons, layers) for name, neurons in sets.items())
        partial.write_text(text, encoding="utf-8", newline="")
    elif path.suffix == ".safetensors":
        write_safetensors(sets, partial)
    elif path.suffix == ".parquet":
        rows = [(name, layer, neuron) for name, neurons in sets.items() for layer, neuron in neurons]
        pl.DataFrame(
            rows, dict(zip(_COLUMNS, (pl.String, pl.String, pl.Int64), strict=True)), orient="row"
        ).write_parquet(partial)
    else:
        raise _unknown_suffix(path)
    partial.replace(path)


def write_safetensors(sets: Mapping[str, NeuronSet], path: Path) -> None:
    """Neuron sets by name (a prompt_id, a cluster) as one int64 tensor of indices for each set and layer."""
    tensors = {
        f"{name}\t{layer}": torch.tensor(sorted(indices), dtype=torch.int64)
        for name, neurons in sets.items()
        for layer, indices in neurons.indices.items()
    }
    # the order of the sets and the empty ones are in no tensor
    order = {name: list(neurons.indices) for name, neurons in sets.items()}
    save_file(tensors, path, metadata={"sets": json.dumps(order)})


def read_safetensors(path: Path) -> dict[str, NeuronSet]:
    """Read what `write_safetensors` wrote.

    Raises:
        InputError: The file is missing, damaged, or holds something else.
    """
    try:
        tensors = load_file(path)
        with safe_open(path, framework="pt") as file:
            order = json.loads(file.metadata()["sets"])
        return {
            name: NeuronSet.of({layer: tensors[f"{name}\t{layer}"].tolist() for layer in layers})
            for name, layers in order.items()
        }
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        cure = "Give a file that `fbmem neurons --out FILE.safetensors` wrote."
        raise InputError("neuron sets in safetensors", type(error).__name__, where=path, cure=cure) from None


def _read_parquet(path: Path) -> dict[str, NeuronSet]:
    try:
        rows = pl.read_parquet(path, columns=list(_COLUMNS)).rows()
    except (OSError, pl.exceptions.PolarsError) as error:
        cure = f"Its columns are {', '.join(_COLUMNS)}."
        raise InputError("neuron sets in Parquet", type(error).__name__, where=path, cure=cure) from None
    return named_sets(rows)


def _unknown_suffix(path: Path) -> InputError:
    return InputError(f"a file of {', '.join(SUFFIXES)}", f"`{path.name}`", cure="Name it so.")


def _parse(text: str, where: str) -> tuple[tuple[int, ...], ...]:
    try:
        lists = tuple(tuple(of_layer) for of_layer in ast.literal_eval(text))
        if any(type(index) is not int or index < 0 for of_layer in lists for index in of_layer):
            raise ValueError
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        cure = "Take the file as NeMo's code wrote it."
        raise InputError("a list of neurons for each layer", f"`{text[:60]}`", where=where, cure=cure) from None
    return lists
