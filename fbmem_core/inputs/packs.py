"""Prompt packs: published prompt sets by name, frozen by hash, with the addresses of their pictures."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fbmem_core.errors import InputError
from fbmem_core.inputs.fetching import USER_AGENT, Fetched, FetchLimits, fetch_pictures
from fbmem_core.inputs.prompts import Prompt, read_prompts
from fbmem_core.inputs.rows import shorten

PROMPTS_NAME, MANIFEST_NAME, PACK_NAME, PICTURES_DIR = "prompts.csv", "references.csv", "pack.json", "pictures"
SHIPPED = Path(__file__).resolve().parents[2] / "data" / "packs"
_RAW = "https://raw.githubusercontent.com"
_NEMO = "ml-research/localizing_memorization_in_diffusion_models/f952eded64fca0bcf42e0bb3be9a01d64653cfdb/prompts"
_ANISOTROPY = "rohanasthana/memorization-anisotropy/97e991bac4171ad0547c5779c31180ea8e9f672e/prompts"


@dataclass(frozen=True)
class Pack:
    """One published prompt set.

    Attributes:
        name: By which `fbmem pack` knows it.
        title: What it holds.
        url: Its file at the authors' repository, at one commit.
        sha256: Of that file.
        num_prompts: How many prompts the file holds.
        licence: Of the file; "none": it names none, so every user fetches it from its authors.
        kind: Of prompts whose row names none.
    """

    name: str
    title: str
    url: str
    sha256: str
    num_prompts: int
    licence: str
    kind: str

    @property
    def file_name(self) -> str:
        """The name of its file."""
        return self.url.rpartition("/")[2]


PACKS = {
    pack.name: pack
    for pack in (
        Pack(
            "webster-sd1", "prompts memorized by Stable Diffusion v1: 112 VM, 388 TM (Webster 2023, NeMo's table)",
            f"{_RAW}/{_NEMO}/memorized_laion_prompts.csv",
            "0b527a5965dc463e7a3e0d234ff7fd5489b1a76869c456dbb209dc753cb4af25", 500, "MIT", "memorized",
        ),
        Pack(
            "nemo-unmemorized", "LAION captions that Stable Diffusion v1 has not memorized (NeMo)",
            f"{_RAW}/{_NEMO}/unmemorized_laion_prompts.csv",
            "f453b418cc157864baacbf68d97447273feac41e8066b2ead6b307bf795988e1", 500, "MIT", "non-memorized",
        ),
        Pack(
            "coco", "captions of COCO 2014's validation pictures (NeMo's selection); no addresses of pictures",
            f"{_RAW}/{_NEMO}/coco2014_val_10000.csv",
            "5445e449c60fd6b326a05c79a683c4d64620b0330a372de843eb6b9dbe5901e3", 10_000, "CC BY 4.0", "non-memorized",
        ),
        Pack(
            "sd2", "prompts memorized by Stable Diffusion v2: 215 TV, 4 MV, nearly all copies of a part",
            f"{_RAW}/{_ANISOTROPY}/sd2_mem.jsonl",
            "fc2f6553f676e8fb94bf5b2eddfef80915131aeca23fa44e49c54edd6968ca74", 219, "MIT", "memorized",
        ),
        Pack(
            "realistic-vision", "prompts memorized by Realistic Vision v5.1; no addresses of pictures",
            f"{_RAW}/{_ANISOTROPY}/RV_mem.txt",
            "a23d5ac7a8f4fbfaa440ef6a793a55331a8a9e3416cda4dc58790b32b96fc392", 90, "MIT", "memorized",
        ),
        Pack(
            "membench", "prompts that bring forth 151 memorized pictures of Stable Diffusion v1 (MemBench)",
            f"{_RAW}/chunsanHong/MemBench_code/f22a0fdcd24fa0f4a43bf7b9a8e42c8c78af302f/SD1_final.csv",
            "8c41867a67ea184c4f7f3c9765eeb55faa3b5058d1552e014616de9198d110c7", 3_000, "none", "memorized",
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class PackedPrompts:
    """Counts of what was written: prompts in all, those with an address of a picture, and different addresses."""

    folder: Path
    num_prompts: int
    num_rejected: int
    num_with_address: int
    num_addresses: int


@dataclass(frozen=True)
class Availability:
    """Counts of how much of a pack is there: `statuses` counts references, the numbers count prompts."""

    statuses: dict[str, int]
    num_prompts: int
    num_with_picture: int


def obtain_pack(pack: Pack, folder: Path, *, source: Path | None = None) -> Path:
    """The pack's file, checked against its hash: the given one, the shipped one, or fetched from its authors.

    Args:
        pack: The pack.
        folder: Where a fetched file is kept; it is not fetched twice.
        source: A copy that is there already.

    Raises:
        InputError: The file cannot be had, or is another than the one that was frozen.
    """
    kept = folder / pack.file_name
    for path in [source] if source is not None else [SHIPPED / pack.file_name, kept]:
        if path.is_file():
            return _checked(path, pack)
    if source is not None:
        raise InputError(f"the file {pack.file_name}", "no such file", where=source, cure=f"It is at {pack.url} .")
    write_atomically(kept, _download(pack))
    return _checked(kept, pack)


def write_pack(pack: Pack, file: Path, folder: Path) -> PackedPrompts:
    """Write `prompts.csv`, `references.csv` (a row per address of a picture) and `pack.json` of a pack's file.

    Every prompt names the references that its row lists; prompts that list one address share its reference.

    Raises:
        InputError: The file holds another number of prompts than the pack.
    """
    prompts, rejected = read_prompts(file)
    if len(prompts) != pack.num_prompts:
        got = f"{len(prompts)} ({len(rejected)} rejected)"
        raise InputError(f"{pack.num_prompts} prompts", got, where=file, cure="Take the file of the pack's commit.")
    captions: dict[str, str] = {}
    for prompt in prompts:
        for url in prompt.urls:
            captions.setdefault(url, prompt.prompt)
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / PROMPTS_NAME, _PROMPT_COLUMNS, (_prompt_row(prompt, pack) for prompt in prompts))
    if captions:
        rows = [(reference_name(url), "", caption, url) for url, caption in captions.items()]
        write_table(folder / MANIFEST_NAME, MANIFEST_COLUMNS, rows)
    facts = {"name": pack.name, "url": pack.url, "sha256": pack.sha256, "licence": pack.licence}
    write_atomically(folder / PACK_NAME, json.dumps({**facts, "prompts": len(prompts)}, indent=1).encode())
    with_address = sum(bool(prompt.urls) for prompt in prompts)
    return PackedPrompts(folder, len(prompts), len(rejected), with_address, len(captions))


def fetch_pack(
    folder: Path, limits: FetchLimits | None = None, *, report: Callable[[Fetched], None] = lambda outcome: None
) -> Availability:
    """Fetch the pictures of `references.csv` into `pictures/`, and name those that are there in the manifest.

    Args:
        folder: A folder that `write_pack` made, or any with a manifest (reference_id, url).
        limits: What a picture may cost.
        report: Called with each outcome.

    Returns:
        What came of the references, and how many prompts have a picture. Two references with one picture from
        different hosts are `ok` and `duplicate`.

    Raises:
        InputError: There is no such manifest, or the folder cannot be written.
    """
    rows = _manifest(folder / MANIFEST_NAME)
    urls = [row["url"] for row in rows if row["url"]]
    fetched = {item.url: item for item in fetch_pictures(urls, folder / PICTURES_DIR, limits, report=report)}
    statuses: Counter[str] = Counter()
    first: dict[str, str] = {}
    named, there = [], set()
    for row in rows:
        item = fetched.get(row["url"])
        status, path = ("no address", row["path"]) if item is None else (item.status, "")
        if item is not None and item.status == "ok":
            path = f"{PICTURES_DIR}/{item.file}"
            there.add(row["reference_id"])
            if first.setdefault(item.sha256 or "", row["reference_id"]) != row["reference_id"]:
                status = "duplicate"
        statuses[status] += 1
        named.append((row["reference_id"], path, row["caption"], row["url"]))
    write_table(folder / MANIFEST_NAME, MANIFEST_COLUMNS, named)
    return _availability(folder, there, statuses)


_PROMPT_COLUMNS = ("prompt_id", "prompt", "kind", "reference_ids", "source_index", "urls")
MANIFEST_COLUMNS = ("reference_id", "path", "caption", "url")


def reference_name(url: str) -> str:
    """The reference_id of an address: the same in every pack.

    Example:
        >>> reference_name("https://a.example/1.jpg")
        'url-db0dc31eb89c'
    """
    return f"url-{hashlib.sha256(url.encode()).hexdigest()[:12]}"


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a CSV file, whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under another name and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        file.write(content)
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)


def _prompt_row(prompt: Prompt, pack: Pack) -> Sequence[str]:
    references = ";".join(reference_name(url) for url in prompt.urls)
    urls = prompt.urls[0] if len(prompt.urls) == 1 else repr(list(prompt.urls)) if prompt.urls else ""
    return (prompt.prompt_id, prompt.prompt, prompt.kind or pack.kind, references, prompt.source_index or "", urls)


def _availability(folder: Path, there: set[str], statuses: dict[str, int]) -> Availability:
    prompts = read_prompts(folder / PROMPTS_NAME)[0] if (folder / PROMPTS_NAME).is_file() else []
    num_with_picture = sum(not there.isdisjoint(prompt.reference_ids) for prompt in prompts)
    return Availability(dict(statuses), len(prompts), num_with_picture)


def _manifest(path: Path) -> list[dict[str, str]]:
    cure = "Make it with `fbmem pack`, or write a CSV with these columns."
    expected = "a manifest with columns reference_id and url"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(expected, reason, where=path, cure=cure) from None
    if not rows or not {"reference_id", "url"} <= set(rows[0]):
        got = shorten([str(name) for name in rows[0]]) if rows else "no row"
        raise InputError(expected, got, where=path, cure=cure)
    return [{name: row.get(name) or "" for name in MANIFEST_COLUMNS} for row in rows]


def _download(pack: Pack) -> bytes:
    import httpx2 as httpx

    try:
        answer = httpx.get(pack.url, headers={"User-Agent": USER_AGENT}, timeout=60, follow_redirects=True)
        answer.raise_for_status()
    except (httpx.HTTPError, OSError) as error:
        cure = f"Fetch it from {pack.url} and name it with --from."
        raise InputError(f"the file of the pack {pack.name}", f"{type(error).__name__}: {error}", cure=cure) from None
    return answer.content


def _checked(path: Path, pack: Pack) -> Path:
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 != pack.sha256:
        cure = f"Take it from {pack.url} ."
        raise InputError(f"the file with SHA-256 {pack.sha256[:16]}...", f"{sha256[:16]}...", where=path, cure=cure)
    return path
