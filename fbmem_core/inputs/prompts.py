"""Prompt sets: read from the formats that the field uses."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fbmem_core.errors import InputError

# the names under which published prompt sets keep each column, in order of preference
_COLUMNS = {
    "prompt": ("prompt", "caption", "text"),
    "prompt_id": ("prompt_id", "id", "index"),
    "kind": ("kind", "type"),
    "reference_id": ("reference_id",),
    "source": ("source", "url", "urls"),
}


@dataclass(frozen=True)
class Prompt:
    """One prompt. `kind` says what is known of it (say VM, TM, public), `source` where it or its image is from."""

    prompt_id: str
    prompt: str
    kind: str | None = None
    reference_id: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class Rejection:
    """One item that was left out, and why."""

    item: str
    reason: str


def read_prompts(path: Path) -> tuple[list[Prompt], list[Rejection]]:
    """Read a prompt set.

    `.csv` and `.tsv` (comma, semicolon or tab), `.jsonl` / `.json` (an object a line), `.parquet` with a column prompt,
    caption or text, any case; `.txt` with a prompt a line. Without prompt_id a row gets its number.

    Returns:
        The prompts in file order, and the rows left out: empty prompts, repeated prompt_ids, unreadable lines.

    Raises:
        InputError: No such file, an unknown format, no column of prompts, or no usable prompt.
    """
    if not path.is_file():
        raise InputError("a prompt file", "no such file", where=path, cure="Give a csv, jsonl, parquet or txt file.")
    rows, rejected = _read_rows(path)
    prompts: list[Prompt] = []
    seen: set[str] = set()
    for number, row in enumerate(rows):
        prompt = _prompt_of(row, number)
        if not prompt.prompt:
            rejected.append(Rejection(f"row {number}", f"the prompt of `{prompt.prompt_id}` is empty"))
        elif prompt.prompt_id in seen:
            rejected.append(Rejection(f"row {number}", f"the prompt_id `{prompt.prompt_id}` comes again"))
        else:
            seen.add(prompt.prompt_id)
            prompts.append(prompt)
    if not prompts:
        raise InputError("at least one prompt", f"none ({len(rejected)} rejected)", where=path, cure="Add prompts.")
    return prompts, rejected


def _read_rows(path: Path) -> tuple[list[dict[str, object]], list[Rejection]]:
    suffix = path.suffix.lower()
    rejected: list[Rejection] = []
    try:
        if suffix in (".csv", ".tsv"):
            with path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file, delimiter=_delimiter(path), strict=True)
                rows: list[dict[str, object]] = [dict(row) for row in reader]
        elif suffix in (".jsonl", ".json"):
            rows = _json_lines(path, rejected)
        elif suffix == ".parquet":
            rows = pq.ParquetFile(path).read().to_pylist()
        elif suffix == ".txt":
            rows = [{"prompt": line} for line in _lines(path)]
        else:
            cure = "Convert it to csv, jsonl, parquet or txt."
            raise InputError("a csv, tsv, jsonl, parquet or txt file", f"`{suffix}`", where=path, cure=cure)
    except (csv.Error, OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"readable {suffix} text", f"{error}", where=path, cure="Save it anew as UTF-8.") from None
    columns = list(dict.fromkeys(str(name) for row in rows for name in row))
    if rows and not any(name.lower() in _COLUMNS["prompt"] for name in columns):
        got = ", ".join(f"`{name}`" for name in columns if name) or "none"
        raise InputError("a column prompt, caption or text", got, where=path, cure="Rename the column of prompts.")
    return rows, rejected


def _delimiter(path: Path) -> str:
    with path.open(encoding="utf-8-sig") as file:
        header = file.readline()
    return max(",;\t", key=header.count)


def _lines(path: Path) -> list[str]:
    # not splitlines(), which also breaks at characters that captions hold, such as U+2028
    with path.open(encoding="utf-8-sig") as file:
        return [line.rstrip("\n") for line in file]


def _json_lines(path: Path, rejected: list[Rejection]) -> list[dict[str, object]]:
    rows = []
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # also too long a number, too deep a list
            rejected.append(Rejection(f"line {number}", f"no JSON: {error}"))
            continue
        if isinstance(row, dict):
            rows.append(row)
        else:
            rejected.append(Rejection(f"line {number}", f"a JSON object was expected, not {type(row).__name__}"))
    return rows


def _prompt_of(row: dict[str, object], number: int) -> Prompt:
    lowered = {str(name).lower(): value for name, value in row.items()}
    values: dict[str, str | None] = {}
    for field, names in _COLUMNS.items():
        found = next((lowered[name] for name in names if lowered.get(name) not in (None, "")), None)
        values[field] = " ".join(str(found).split()) if found is not None else None
    return Prompt(
        prompt_id=values["prompt_id"] or str(number),
        prompt=values["prompt"] or "",
        kind=values["kind"],
        reference_id=values["reference_id"],
        source=values["source"],
    )
