"""Prompt sets: read from the formats that the field uses."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from pathlib import Path

from fbmem_core.errors import InputError
from fbmem_core.inputs.rows import Rejection, Row, read_rows, shorten

# the names under which published prompt sets keep each column, in order of preference
_COLUMNS = {
    "prompt": ("prompt", "caption", "text", "captions"),
    "prompt_id": ("prompt_id", "id", "index"),
    "kind": ("kind", "type", "overfit_type"),
    "reference_ids": ("reference_ids", "reference_id"),
    "source": ("source", "url"),
    "urls": ("urls", "url", "retrieved_urls"),
    "source_index": ("source_index", "laion_index", "index"),
}
_READ = frozenset(name for names in _COLUMNS.values() for name in names)
_NUMBERS_IMAGES = ("id", "index")  # columns that may name an image with several captions
# what pandas and spreadsheets write where there is nothing; a CSV cannot tell it from text
_MISSING = frozenset({"nan", "NaN", "None", "null", "NULL", "<NA>", "#N/A"})
_TEXT_SUFFIXES = (".csv", ".tsv")


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        prompt_id: Its name.
        prompt: The text.
        kind: The group that the file names, say VM, TM, public.
        reference_id: The first of `reference_ids`.
        source: Where it or its image is from.
        reference_ids: The references that the file says belong to it.
        urls: Where these can be had.
        source_index: Its number where it is from, say in LAION.
    """

    prompt_id: str
    prompt: str
    kind: str | None = None
    reference_id: str | None = None
    source: str | None = None
    reference_ids: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    source_index: str | None = None


class _UnfitError(Exception):
    """A cell that is not what its column holds."""


def read_prompts(path: Path) -> tuple[list[Prompt], list[Rejection]]:
    """Read a prompt set.

    `.csv` and `.tsv` (comma, semicolon or tab), `.jsonl` / `.json` (an object a line, or one array), `.parquet` with a
    column prompt, caption or text, any case; `.txt` with a prompt a line; or a folder of such files. Without prompt_id
    a row gets its number. A list of captions is a prompt each, `<id>-0`, `<id>-1`, ...; rows that repeat an `id` or
    `index` with another text, as captions of one image do, get `<id>-1`, `<id>-2`, ....

    Returns:
        The prompts in file order, and the rows left out: empty prompts, prompts that are no text (bytes are decoded as
        UTF-8), repeated prompt_ids, rows with more fields than the header, unreadable lines.

    Raises:
        InputError: No such file, an unknown format, no column of prompts, or no usable prompt.
    """
    if not path.exists():
        raise InputError("a prompt file", "no such file", where=path, cure="Give a csv, jsonl, parquet or txt file.")
    rows, columns = read_rows(path, _READ)
    if columns and not any(name.strip().lower() in _COLUMNS["prompt"] for name in columns):
        cure = "Rename the column of prompts."
        raise InputError("a column prompt, caption or text", shorten(columns), where=path, cure=cure)
    reader = _Reader(is_text=path.suffix.lower() in _TEXT_SUFFIXES)
    for number, row in enumerate(rows):
        if isinstance(row, Rejection):
            reader.rejected.append(row)
        else:
            reader.add(row, number)
    if not reader.prompts:
        first = f", such as {reader.rejected[0].item}: {reader.rejected[0].reason}" if reader.rejected else ""
        got = f"none ({len(reader.rejected)} rejected{first})"
        raise InputError("at least one prompt", got, where=path, cure="Add prompts.")
    return reader.prompts, reader.rejected


class _Reader:
    """Turns rows into prompts with ids of their own."""

    def __init__(self, *, is_text: bool) -> None:
        self.prompts: list[Prompt] = []
        self.rejected: list[Rejection] = []
        self._is_text = is_text
        self._text_of: dict[str, str] = {}

    def add(self, row: Row, number: int) -> None:
        cells = _Cells(row.values)
        try:
            texts = list(self._texts(cells))
            column, value = cells.first("prompt_id")
            name = _scalar(value, column) or str(number)
            facts = _facts(cells)
        except _UnfitError as error:
            self.rejected.append(Rejection(row.label, str(error)))
            return
        for place, text in enumerate(texts):
            label = row.label if len(texts) == 1 else f"{row.label} text {place}"
            prompt_id = name if len(texts) == 1 else f"{name}-{place}"
            if isinstance(text, _UnfitError):
                self.rejected.append(Rejection(label, str(text)))
            elif not text:
                self.rejected.append(Rejection(label, f"the prompt of `{prompt_id}` is empty"))
            else:
                self._add(label, prompt_id, text, is_numbered=column in _NUMBERS_IMAGES, facts=facts)

    def _add(self, label: str, prompt_id: str, text: str, *, is_numbered: bool, facts: dict[str, object]) -> None:
        taken = self._text_of.get(prompt_id)
        if taken is not None and is_numbered and taken != text:
            number = 1
            while f"{prompt_id}-{number}" in self._text_of:
                number += 1
            prompt_id = f"{prompt_id}-{number}"
        elif taken is not None:
            self.rejected.append(Rejection(label, f"the prompt_id `{prompt_id}` comes again"))
            return
        self._text_of[prompt_id] = text
        self.prompts.append(Prompt(prompt_id, text, **facts))  # type: ignore[arg-type]

    def _texts(self, cells: _Cells) -> Iterator[str | _UnfitError]:
        column, value = cells.first("prompt")
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        for item in values or [None]:
            try:
                yield self._text(item, column)
            except _UnfitError as error:
                yield error

    def _text(self, value: object, column: str) -> str:
        if value is None:
            return ""
        if isinstance(value, bytes):
            try:
                value = value.decode()
            except UnicodeDecodeError:
                raise _UnfitError(f"`{column}` holds bytes that are no UTF-8") from None
        if not isinstance(value, str):
            raise _UnfitError(f"`{column}` holds {_described(value)}, not text")
        if self._is_text and value.strip() in _MISSING:
            raise _UnfitError(f"`{column}` is `{value.strip()}`, as missing values are written")
        return _clean(value, column)


class _Cells:
    """The cells of a row by the lower case of their columns' names."""

    def __init__(self, values: dict[str, object]) -> None:
        self._values: dict[str, object] = {}
        for name, value in values.items():
            lowered = str(name).strip().lower()
            if self._values.get(lowered) in (None, ""):
                self._values[lowered] = value

    def first(self, field: str) -> tuple[str, object]:
        """The first column of a field that holds anything, and what it holds."""
        for name in _COLUMNS[field]:
            value = self._values.get(name)
            if value is not None and value != "" and not (isinstance(value, float) and math.isnan(value)):
                return name, value
        named = [name for name in _COLUMNS[field] if name in self._values]
        return (named or list(_COLUMNS[field]))[0], None


def _facts(cells: _Cells) -> dict[str, object]:
    references = _listed(*reversed(cells.first("reference_ids")))
    urls = _listed(*reversed(cells.first("urls")))
    column, source = cells.first("source")
    return {
        "kind": _scalar(cells.first("kind")[1], "kind") or None,
        "reference_id": references[0] if references else None,
        "source": _scalar(source, column) or (urls[0] if urls else None),
        "reference_ids": references,
        "urls": tuple(url for url in urls if "://" in url),
        "source_index": _scalar(*reversed(cells.first("source_index"))) or None,  # type: ignore[arg-type]
    }


def _listed(value: object, column: object) -> tuple[str, ...]:
    """Texts of a list, of a list that is written as Python writes it, or of a text."""
    if isinstance(value, (list, tuple, set)):
        return tuple(text for item in value if (text := _scalar(item, str(column))))
    text = _scalar(value, str(column))
    if text.startswith("[") and text.endswith("]"):
        return tuple(_python_list(text))
    if column == "reference_ids":
        return tuple(part.strip() for part in text.split(";") if part.strip())
    return (text,) if text else ()


def _python_list(text: str) -> Sequence[str]:
    import ast

    try:
        items = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return [text]
    return [item for item in items if isinstance(item, str)]


def _scalar(value: object, column: str) -> str:
    """A name as text; "" where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of numbers in which one was missing
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise _UnfitError(f"`{column}` holds bytes that are no UTF-8") from None
    if not isinstance(value, (str, int, float, Decimal, date, time)):
        raise _UnfitError(f"`{column}` holds {_described(value)}, not a name")
    return _clean(str(value), column)


def _clean(text: str, column: str) -> str:
    """White space as single blanks."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _UnfitError(f"`{column}` holds half a character, which no Unicode text has") from None
    return " ".join(text.split())


def _described(value: object) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    return f"a {type(value).__name__} (`{value!s:.40}`)"
