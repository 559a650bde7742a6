"""Pictures of a pack: fetched from the addresses that its manifest lists, each fate counted under a reason."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image

from fbmem_core.errors import InputError
from fbmem_core.inputs.fetching import PASSING, Answer, Fetcher, Limits
from fbmem_core.inputs.packs import MANIFEST_COLUMNS, MANIFEST_NAME, PICTURES_DIR, PROMPTS_NAME, write_table
from fbmem_core.inputs.references import MIN_SIDE, open_rgb

RECORD_NAME = "fetched.jsonl"
_DARK = 8  # of 255: a picture whose numbers all lie below it is black
_SERVED_FOR_MANY = 3  # addresses of one host that give one picture: it stands for what is gone


@dataclass(frozen=True)
class Fetched:
    """What came of one reference.

    Attributes:
        reference_id: Its name in the manifest.
        url: The address.
        status: ok; duplicate (the bytes of another host's picture, which is kept too); placeholder (one picture for
            several addresses of a host, a single colour, or a side under 8 px); black; unreadable; truncated; type;
            too_large; http; busy; timeout; unreachable; private; redirects; address; none (no address).
        reason: The same in words.
        path: Its file below the folder; "" where there is none.
        sha256: Of the file.
        final_url: The address that answered.
    """

    reference_id: str
    url: str
    status: str
    reason: str = ""
    path: str = ""
    sha256: str = ""
    final_url: str = ""


@dataclass(frozen=True)
class Availability:
    """How much of a pack is there: `statuses` counts references, the numbers count prompts."""

    statuses: dict[str, int]
    num_prompts: int
    num_with_picture: int


def fetch_pictures(
    folder: Path,
    *,
    limits: Limits | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Fetched], Availability]:
    """Fetch the pictures of `references.csv`, into `pictures/`, and name those that are there in the manifest.

    What is done is recorded at once in `fetched.jsonl`: a second call goes on where the first was stopped, and asks
    again only what may be otherwise by then (timeout, unreachable, busy).

    Args:
        folder: A folder that `write_pack` made, or any with a manifest (reference_id, url).
        limits: What one answer may take.
        report: Called with the number of references that are done and their total.

    Returns:
        A row per reference, in the manifest's order, and what they come to.

    Raises:
        InputError: There is no such manifest.
    """
    rows = _manifest(folder / MANIFEST_NAME)
    record = _Record(folder / RECORD_NAME)
    (folder / PICTURES_DIR).mkdir(exist_ok=True)
    waiting = {row["url"]: row for row in rows if row["url"] and not record.is_done(row["url"], folder)}
    report(len(rows) - len(waiting), len(rows))
    fetcher = Fetcher(limits, is_type_right=lambda content_type: content_type.startswith("image/"))
    targets = [(url, folder / PICTURES_DIR / row["reference_id"]) for url, row in waiting.items()]
    for done, (answer, path) in enumerate(fetcher.fetch_all(targets), start=1):
        record.add(_look_at(answer, path, waiting[answer.url]["reference_id"], folder))
        report(len(rows) - len(waiting) + done, len(rows))
    fetched = _told_apart([record.of(row) for row in rows])
    paths = {item.reference_id: item.path for item in fetched if item.status in ("ok", "duplicate")}
    write_table(
        folder / MANIFEST_NAME,
        MANIFEST_COLUMNS,
        [(row["reference_id"], paths.get(row["reference_id"], ""), row["caption"], row["url"]) for row in rows],
    )
    return fetched, _availability(folder, fetched)


class _Record:
    """What came of each address, a JSON object a line, written as it comes; a torn last line is passed over."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._items: dict[str, Fetched] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            try:
                item = Fetched(**json.loads(line))
            except (ValueError, TypeError):
                continue
            self._items[item.url] = item
        if path.is_file() and not path.read_bytes().endswith(b"\n"):
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")

    def is_done(self, url: str, folder: Path) -> bool:
        item = self._items.get(url)
        if item is None or item.status in PASSING:
            return False
        return item.status != "ok" or (folder / item.path).is_file()

    def add(self, item: Fetched) -> None:
        self._items[item.url] = item
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(item)) + "\n")

    def of(self, row: dict[str, str]) -> Fetched:
        item = self._items.get(row["url"])
        if item is None:
            return Fetched(row["reference_id"], row["url"], "none", "no address", row["path"])
        return replace(item, reference_id=row["reference_id"])


def _look_at(answer: Answer, path: Path, reference_id: str, folder: Path) -> Fetched:
    """The fate of an answer: one that is no picture loses its file."""
    if answer.status != "ok":
        return Fetched(reference_id, answer.url, answer.status, answer.reason)
    status, reason, suffix = _judge(path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if status != "ok":
        path.unlink()
        return Fetched(reference_id, answer.url, status, reason, "", sha256, answer.final_url)
    named = path.with_name(path.name + suffix)
    path.replace(named)
    below = named.relative_to(folder).as_posix()
    return Fetched(reference_id, answer.url, "ok", "", below, sha256, answer.final_url)


def _judge(path: Path) -> tuple[str, str, str]:
    """Status, reason and the suffix of a picture's format."""
    try:
        image = open_rgb(path)
        with Image.open(path) as opened:
            kind = (opened.format or "png").lower()
    except InputError as error:
        reason = str(error).partition("but got ")[2].partition(" in /")[0]
        return ("truncated" if "truncated" in reason.lower() else "unreadable"), reason, ""
    if min(image.size) < MIN_SIDE:
        return "placeholder", f"only {image.width}x{image.height} px", ""
    extrema: Sequence[tuple[int, int]] = image.getextrema()  # type: ignore[assignment]
    if max(high for _, high in extrema) < _DARK:
        return "black", "no pixel is lighter than black", ""
    if all(low == high for low, high in extrema):
        return "placeholder", "a single colour", ""
    return "ok", "", {"jpeg": ".jpg", "tiff": ".tif"}.get(kind, f".{kind}")


def _told_apart(items: list[Fetched]) -> list[Fetched]:
    """Mark pictures that one host gives for several addresses as placeholders, and other repeats as duplicates."""
    usable = [item for item in items if item.status == "ok"]
    urls_of: dict[tuple[str, str], set[str]] = defaultdict(set)
    for item in usable:
        urls_of[item.sha256, _host(item.final_url)].add(item.url)
    first: dict[str, str] = {}
    marked = []
    for item in items:
        if item.status == "ok":
            num_urls = len(urls_of[item.sha256, _host(item.final_url)])
            known = first.setdefault(item.sha256, item.reference_id)
            if num_urls >= _SERVED_FOR_MANY:
                reason = f"one picture for {num_urls} addresses of its host"
                marked.append(replace(item, status="placeholder", reason=reason))
                continue
            if known != item.reference_id:
                marked.append(replace(item, status="duplicate", reason=f"the same file as {known}"))
                continue
        marked.append(item)
    return marked


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


def _availability(folder: Path, fetched: Sequence[Fetched]) -> Availability:
    there = {item.reference_id for item in fetched if item.status in ("ok", "duplicate") and item.path}
    num_prompts = num_with_picture = 0
    prompts = folder / PROMPTS_NAME
    if prompts.is_file():
        with prompts.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                num_prompts += 1
                num_with_picture += bool(there & set((row.get("reference_ids") or "").split(";")))
    return Availability(dict(Counter(item.status for item in fetched)), num_prompts, num_with_picture)


def _manifest(path: Path) -> list[dict[str, str]]:
    cure = "Make it with `fbmem pack`, or write a CSV with these columns."
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError("a manifest with reference_id and url", f"{error}", where=path, cure=cure) from None
    if not rows or not {"reference_id", "url"} <= set(rows[0]):
        got = ", ".join(f"`{name}`" for name in (rows[0] if rows else [])) or "no row"
        raise InputError("a manifest with reference_id and url", got, where=path, cure=cure)
    named = [{name: row.get(name) or "" for name in MANIFEST_COLUMNS} for row in rows]
    for row in named:
        if not row["reference_id"] or "/" in row["reference_id"] or row["reference_id"].startswith("."):
            raise InputError("a reference_id that can name a file", f"`{row['reference_id']}`", where=path, cure=cure)
    return named
