"""Seconds that views and the report take over a large audit: 100,000 images (5,000 prompts, 20 seeds), 500 references.

`python -m tests.benchmarks views`; the rows are drawn at random, and many images share one file. Every view is asked
by `fbmem sql`'s way, over Parquet in a new connection each time, and in `fbmem.duckdb`, as an analyst does.
"""

import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from fbmem_core.report.evidence import gather
from fbmem_core.report.page import write_report
from fbmem_core.store.images import file_sha256
from fbmem_core.store.schemas import TABLES
from fbmem_core.store.tables import Store
from fbmem_core.store.warehouse import build_warehouse, query
from tests.core.evidence import KEY, drawn_store

NUM_PROMPTS, NUM_SEEDS, NUM_REFERENCES, NUM_FILES = 5_000, 20, 500, 40
VIEWS = ("findings", "mitigated_findings", "prompt_findings", "reference_findings", "audits")


def large_store(root: Path, *, num_prompts: int = NUM_PROMPTS, num_seeds: int = NUM_SEEDS) -> Store:
    """A store whose prompts copy with shares from 0 to 1, most of them never."""
    store = drawn_store(root)
    random = np.random.default_rng(0)
    files = [f"images/generations/{KEY}/large-{number}.png" for number in range(NUM_FILES)]
    for path in files:
        pixels = random.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64)).save(store.root / path)
    digests = {path: file_sha256(store.root / path) for path in files}
    num = num_prompts * num_seeds
    images = pl.DataFrame({
        "checkpoint": KEY, "method": "none",
        "prompt_id": np.repeat([f"prompt-{number:05d}" for number in range(num_prompts)], num_seeds),
        "seed": np.tile(np.arange(num_seeds), num_prompts), "path": np.array(files)[random.integers(0, NUM_FILES, num)],
    })  # fmt: skip
    _references(store, files)
    _write(store, "prompts", images.select("checkpoint", "prompt_id").unique(maintain_order=True).with_columns(
        audit=pl.lit("drawn"), prompt="a picture of " + pl.col("prompt_id"), kind=pl.lit("drawn")))  # fmt: skip
    _write(store, "generations", images.with_columns(
        sha256=pl.col("path").replace_strict(digests), width=pl.lit(64), height=pl.lit(64)))  # fmt: skip
    image_ids = pl.format("none/{}/{}", "prompt_id", "seed")
    _write(store, "masks", images.with_columns(
        image_kind=pl.lit("generation"), image_id=image_ids, foreground_fraction=pl.lit(0.5), status=pl.lit("ok")
    ))  # fmt: skip
    labels = _labels(images, random, num_prompts, num_seeds)
    _write(store, "labels", labels)
    _write(store, "neighbors", _neighbors(labels))
    return store


def _references(store: Store, files: list[str]) -> None:
    paths = [str(store.root / files[number % NUM_FILES]) for number in range(NUM_REFERENCES)]
    _write(store, "reference_images", pl.DataFrame({
        "checkpoint": KEY, "audit": "drawn", "reference_id": [f"r{number:03d}" for number in range(NUM_REFERENCES)],
        "path": paths, "sha256": [file_sha256(Path(path)) for path in paths], "status": "ok",
    }))  # fmt: skip


def _labels(images: pl.DataFrame, random: np.random.Generator, num_prompts: int, num_seeds: int) -> pl.DataFrame:
    """Every tenth prompt copies, more or less often."""
    num = len(images)
    share = np.where(np.arange(num_prompts) % 10, 0.0, random.random(num_prompts)).repeat(num_seeds)
    is_copy = random.random(num) < share
    kinds = np.where(is_copy, random.choice(["VM", "FM", "BM"], num), "NM")
    high, low = 0.8 + 0.2 * random.random(num), 0.75 * random.random(num)
    names = pl.Series([f"r{number:03d}" for number in random.integers(0, NUM_REFERENCES, num)])
    columns = {"masking": pl.lit("masked"), "rule": pl.lit("paper"), "label": pl.Series(kinds)}
    for region, label in (("full", "VM"), ("foreground", "FM"), ("background", "BM")):
        columns[f"{region}_similarity"] = pl.Series(np.where(kinds == label, high, low))
        columns[f"{region}_reference_id"] = names
    return images.drop("path").with_columns(**columns, transform=pl.lit("whole"))


def _neighbors(labels: pl.DataFrame) -> pl.DataFrame:
    """Two references of each region."""
    parts = [
        labels.select(
            "checkpoint", "method", "prompt_id", "seed", "masking", region=pl.lit(region), rank=pl.lit(rank),
            reference_id=pl.col(f"{region}_reference_id") if rank == 1 else pl.lit("r000"),
            similarity=pl.col(f"{region}_similarity") / rank, complete=pl.lit(True), transform=pl.lit("whole"),
        )
        for region in ("full", "foreground", "background") for rank in (1, 2)
    ]  # fmt: skip
    return pl.concat(parts)


def _write(store: Store, table: str, rows: pl.DataFrame) -> None:
    """Replace a table's rows; columns that are not given are null."""
    schema = TABLES[table].schema
    empty = pl.DataFrame(pl.from_arrow(schema.empty_table()))
    folder = store.table_dir(table, KEY)
    for path in folder.glob("*.parquet"):
        path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    whole = pl.concat([empty, rows.select(name for name in schema.names if name in rows.columns).cast(
        {name: empty.schema[name] for name in rows.columns if name in empty.schema})], how="diagonal")  # fmt: skip
    whole.select(schema.names).write_parquet(folder / "none.parquet")


class Clock:
    """Seconds of the wall and of all processors together since the last call."""

    def __init__(self) -> None:
        self._wall, self._work = time.perf_counter(), time.process_time()

    def __str__(self) -> str:
        now = time.perf_counter(), time.process_time()
        text = f"{now[0] - self._wall:6.2f} s, {now[1] - self._work:6.2f} s of work"
        self._wall, self._work = time.perf_counter(), time.process_time()
        return text


def main() -> None:
    """Print the seconds of every view, of the database and of the report, and the size of the page."""
    import duckdb

    with tempfile.TemporaryDirectory() as folder:
        store = large_store(Path(folder))
        print(f"views: {NUM_PROMPTS * NUM_SEEDS} images x {NUM_REFERENCES} references")
        clock = Clock()
        for name in VIEWS:
            query(store, f"SELECT count(*), max(columns(*)) FROM {name}")
            print(f"  {name:20} {clock} in Parquet files, every column of every row")
        path = build_warehouse(store)
        print(f"  fbmem.duckdb         {clock}, {path.stat().st_size / 1e6:.0f} MB")
        with duckdb.connect(str(path), read_only=True) as database:
            for name in VIEWS:
                database.execute(f"SELECT count(*), max(columns(*)) FROM {name}").fetchall()
                print(f"  {name:20} {clock} in fbmem.duckdb")
        evidence = gather(store, KEY)
        print(f"  gather               {clock}")
        page = write_report(store, evidence)
        print(f"  report               {clock}, {page.stat().st_size / 1e6:.1f} MB")
        print(f"  most memory          {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:6.2f} GB")


if __name__ == "__main__":
    main()
