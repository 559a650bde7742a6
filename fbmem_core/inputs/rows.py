"""Rows of text tables as people have them: CSV, JSON and Parquet files, and folders of their shards.

A row that does not fit its file is told apart and named; nothing is cut, joined or turned into text.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fbmem_core.errors import InputError

SUFFIXES = (".parquet", ".jsonl", ".json", ".csv", ".tsv", ".txt")
_BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_MAX_RECORD_LINES = 200  # of one CSV record, so that a quote that is never closed does not swallow a file
_EXCEL_SEPARATOR = re.compile(r"sep=(.)\s*", re.IGNORECASE)
_NUM_SHOWN, _LEN_SHOWN = 6, 40  # names that a message lists


@dataclass(frozen=True)
class Rejection:
    """One item that was left out, and why."""

    item: str
    reason: str


@dataclass(frozen=True)
class Row:
    """One row: `label` names it in messages, `values` holds its cells by the names of the file's columns."""

    label: str
    values: dict[str, object]


def read_rows(path: Path, columns: Collection[str] | None = None) -> tuple[list[Row | Rejection], list[str]]:
    """Read a file, or a folder of shards of one format.

    `.csv` and `.tsv` (comma, semicolon or tab), `.jsonl` and `.json` (an object a line, or one array of objects),
    `.parquet`, and `.txt`, whose lines are the column `prompt`. UTF-8, or UTF-16 with its mark.

    Args:
        path: The file or folder.
        columns: Of Parquet, only these columns are read, whatever their case; None: all.

    Returns:
        What stands in the file, in its order: a row, or why it is none; and the names of the columns.

    Raises:
        InputError: The file cannot be read at all.
    """
    if not path.is_dir():
        return _read_file(path, columns)
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    suffix = next((suffix for suffix in SUFFIXES if any(file.suffix.lower() == suffix for file in files)), None)
    if suffix is None:
        cure = "Put csv, jsonl, parquet or txt files there, or name a file."
        raise InputError("a folder of prompt files", f"{len(files)} others", where=path, cure=cure)
    rows: list[Row | Rejection] = []
    names: list[str] = []
    for file in files:
        name = file.relative_to(path).as_posix()
        if file.suffix.lower() == suffix:
            of_file, of_columns = _read_file(file, columns)
            rows += [_in_file(row, name) for row in of_file]
            names += [column for column in of_columns if column not in names]
        elif file.suffix.lower() in SUFFIXES and not file.name.endswith("_stats.json"):
            rows.append(Rejection(name, f"the folder is read as {suffix} files"))
    return rows, names


def shorten(names: Collection[str]) -> str:
    """Names for a message: the first few, none of them long."""
    shown = [f"`{name if len(name) <= _LEN_SHOWN else name[: _LEN_SHOWN - 3] + '...'}`" for name in names][:_NUM_SHOWN]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return (", ".join(shown) or "none") + more


def read_text(path: Path) -> str:
    """The text of a file: UTF-8 with or without a byte order mark, or UTF-16 with one.

    Raises:
        InputError: It is neither; the message names the line.
    """
    content = path.read_bytes()
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        got = f"bytes in line {line} that are no {encoding.upper()}"
        expected = f"readable {path.suffix.lower()} text"
        raise InputError(expected, got, where=path, cure="Save it anew as UTF-8.") from None


def _in_file(row: Row | Rejection, name: str) -> Row | Rejection:
    if isinstance(row, Row):
        return Row(f"{name} {row.label}", row.values)
    return Rejection(f"{name} {row.item}", row.reason)


def _read_file(path: Path, columns: Collection[str] | None) -> tuple[list[Row | Rejection], list[str]]:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        cure = "Convert it to csv, jsonl, parquet or txt."
        raise InputError("a csv, tsv, jsonl, parquet or txt file", f"`{suffix}`", where=path, cure=cure)
    try:
        if suffix == ".parquet":
            return _parquet_rows(path, columns)
        text = read_text(path)
        if suffix == ".txt":
            lines = _lines(text)
            return [Row(f"row {number}", {"prompt": line}) for number, line in enumerate(lines)], ["prompt"]
        if suffix in (".json", ".jsonl"):
            rows = list(_json_rows(text, path))
            names = dict.fromkeys(name for row in rows if isinstance(row, Row) for name in row.values)
            return rows, list(names)
        return _csv_rows(text, path)
    except (OSError, ValueError, OverflowError, RecursionError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"readable {suffix} text", reason, where=path, cure="Save it anew.") from None


def _parquet_rows(path: Path, columns: Collection[str] | None) -> tuple[list[Row | Rejection], list[str]]:
    file = pq.ParquetFile(path)
    names = list(file.schema_arrow.names)
    _check_repeated(names, columns, path)
    chosen = names if columns is None else [name for name in names if name.strip().lower() in columns]
    rows: list[Row | Rejection] = []
    for batch in file.iter_batches(columns=chosen):
        for values in batch.to_pylist():
            rows.append(Row(f"row {len(rows)}", values))
    return rows, names


def _check_repeated(names: list[str], columns: Collection[str] | None, path: Path) -> None:
    lowered = Counter(name.strip().lower() for name in names if name)
    for name, count in lowered.items():
        if count > 1 and (columns is None or name in columns):
            raise InputError("each column once", f"`{name}` twice", where=path, cure="Rename one of them.")


def _lines(text: str) -> list[str]:
    # not splitlines(), which also breaks at characters that captions hold, such as U+2028
    lines = re.split(r"\r\n|\n|\r", text)
    return lines[:-1] if lines[-1] == "" else lines


def _json_rows(text: str, path: Path) -> Iterator[Row | Rejection]:
    whole = _json_whole(text, path)
    if whole is not None:
        yield from (_json_row(item, f"row {number}", number) for number, item in enumerate(whole))
        return
    number = 0
    for line_number, line in enumerate(_lines(text), start=1):
        if not line.strip():
            continue
        try:
            yield _json_row(json.loads(line), f"line {line_number}", number)
        except (ValueError, RecursionError) as error:  # also too long a number, too deep a list
            yield Rejection(f"line {line_number}", f"no JSON: {error}")
        number += 1


def _json_row(item: object, label: str, number: int) -> Row | Rejection:
    if isinstance(item, dict):
        return Row(f"row {number}", item)
    return Rejection(label, f"a JSON object was expected, not {type(item).__name__}")


def _json_whole(text: str, path: Path) -> list[object] | None:
    """The items of a text that is one array, or one object over several lines; None: an object a line."""
    start = text.lstrip()[:1]
    if start not in ("[", "{"):
        return None
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        first = next(line for line in _lines(text) if line.strip())
        if start == "{" or path.suffix.lower() == ".jsonl" or _is_json(first):  # lines, some of them broken
            return None
        raise InputError("a JSON array of objects", f"no JSON: {error}", where=path, cure="Mend it there.") from None
    if isinstance(whole, list):
        # a line that holds an array is no array of prompts
        return None if len(_lines(text.strip())) == 1 and not any(isinstance(i, dict) for i in whole) else whole
    return [whole]


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _csv_rows(text: str, path: Path) -> tuple[list[Row | Rejection], list[str]]:
    lines = re.findall(r"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+", text)
    separator = _EXCEL_SEPARATOR.fullmatch(lines[0]) if lines else None
    first = 1 if separator else 0
    if len(lines) <= first:
        return [], []
    delimiter = separator[1] if separator else max(",;\t", key=lines[first].count)
    table = _CsvTable(lines, delimiter, is_spaced=f"{delimiter} " in lines[first])
    header, start = table.record(first)
    if isinstance(header, str):
        raise InputError(f"readable {path.suffix.lower()} text", header, where=path, cure="Save it anew with a header.")
    names = [name.strip() for name in header]
    _check_repeated(names, None, path)
    return list(table.rows(names, start)), [name for name in names if name]


class _CsvTable:
    """The lines of a CSV file. A record that is not well formed is told as text that says why."""

    def __init__(self, lines: list[str], delimiter: str, *, is_spaced: bool) -> None:
        self._lines, self._delimiter, self._is_spaced = lines, delimiter, is_spaced

    def rows(self, names: list[str], start: int) -> Iterator[Row | Rejection]:
        number = 0
        while start < len(self._lines):
            record, end = self.record(start, len(names))
            if record == []:  # an empty line
                start = end
                continue
            label = f"row {number}"
            if isinstance(record, str):
                yield Rejection(f"line {start + 1}", record)
            elif len(record) > len(names):
                got = f"{len(record)} fields in line {start + 1} where the header has {len(names)}"
                yield Rejection(label, f"{got}: put text with `{self._delimiter}` in quotes")
            else:
                yield Row(label, dict(zip(names, record, strict=False)))
            number, start = number + 1, end

    def record(self, start: int, num_columns: int | None = None) -> tuple[list[str] | str, int]:
        """The fields of the record that begins in this line, or what is wrong with it, and the line after it."""
        reader = csv.reader(
            islice(self._lines, start, start + _MAX_RECORD_LINES),
            delimiter=self._delimiter,
            strict=True,
            skipinitialspace=self._is_spaced,
        )
        try:
            fields = next(reader)
        except csv.Error as error:
            raw = self._lines[start].rstrip("\r\n").split(self._delimiter)
            if self._delimiter == "\t" and num_columns == len(raw):
                return raw, start + 1  # such files often know no quotes
            return (
                f"{error}: a quote that is no field's own is doubled, and a field with quotes stands in them",
                start + 1,
            )
        end = start + reader.line_num
        inner = self._lines[start + 1 : end - 1]
        if num_columns is not None and any(len(line.split(self._delimiter)) == num_columns for line in inner):
            # text with line breaks does not look like rows
            return f"a quote that is closed in line {end} alone, so that lines {start + 1} to {end} are one field", end
        return fields, end
