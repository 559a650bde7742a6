"""The views: one row per image, prompt, reference and audit, by the audit's own masking and rule."""

import time

import polars as pl
import pytest
from scipy.stats import binom

from fbmem_core.store.intervals import clopper_pearson, interval_rows
from fbmem_core.store.warehouse import build_warehouse, query
from tests.core.evidence import KEY, NOW, blank, drawn_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return drawn_store(tmp_path_factory.mktemp("drawn"))


@pytest.mark.parametrize(("k", "n"), [(0, 5), (1, 5), (3, 7), (5, 5), (17, 300)])
def test_the_interval_is_the_exact_one(k, n):
    low, high = clopper_pearson(k, n)
    if k:  # at the lower end, k or more are seen in 2.5 % of all trials
        assert binom.sf(k - 1, n, low) == pytest.approx(0.025, rel=1e-6)
    else:
        assert low == 0
    if k < n:
        assert binom.cdf(k, n, high) == pytest.approx(0.025, rel=1e-6)
    else:
        assert high == 1
    assert (k, n, low, high) in interval_rows([n])


def test_findings_has_one_row_per_image_by_the_first_rule(store):
    rows = query(
        store, "SELECT prompt_id, seed, label, region, reference_id, similarity, margin FROM findings ORDER BY 1, 2"
    )
    shown = [(*row[:5], round(row[5], 2), round(row[6], 2)) for row in rows.rows()]
    assert shown == [
        ("bay", 0, "BM", "background", "r1", 0.93, 0.13),
        ("bay", 1, "NM", "full", "r1", 0.2, -0.6),
        ("bay", 2, "NM", "full", "r1", 0.2, -0.6),
        ("mug", 0, "FM", "foreground", "r1", 0.9, 0.1),
        ("mug", 1, "FM", "foreground", "r2", 0.82, 0.02),
        ("mug", 2, None, "full", "r1", 0.2, -0.6),
        ("owl", 0, "VM", "full", "r0", 0.95, 0.15),
        ("owl", 1, "VM", "full", "r0", 0.9, 0.1),
        ("owl", 2, "NM", "foreground", "r0", 0.75, -0.05),
        ("sky", 0, "NM", "background", "r1", 0.3, -0.5),
        ("sky", 1, "NM", "background", "r2", 0.2, -0.6),
        ("sky", 2, "NM", "full", "r0", 0.2, -0.6),
    ]


def test_prompt_findings_counts_k_of_n_with_the_exact_interval(store):
    rows = query(
        store, "SELECT prompt_id, k, n, low, high, num_undecided, reference_ids FROM prompt_findings ORDER BY 1"
    )
    assert rows.rows() == [
        ("bay", 1, 3, *clopper_pearson(1, 3), 0, ["r1"]),
        ("mug", 2, 2, *clopper_pearson(2, 2), 1, ["r1", "r2"]),
        ("owl", 2, 3, *clopper_pearson(2, 3), 0, ["r0"]),
        ("sky", 0, 3, *clopper_pearson(0, 3), 0, []),
    ]


def test_reference_findings_names_what_a_rights_holder_asks_for(store):
    sql = "SELECT reference_id, num_images, num_prompts, vm, fm, bm, reference_url FROM reference_findings ORDER BY 1"
    assert query(store, sql).rows() == [
        ("r0", 2, 1, 2, 0, 0, "https://pictures.example/r0"),
        ("r1", 2, 2, 0, 1, 1, "https://pictures.example/r1"),
        ("r2", 1, 1, 0, 1, 0, "https://pictures.example/r2"),
    ]


def test_audits_has_the_settings_versions_and_times(store):
    [row] = query(store, "FROM audits").to_dicts()
    assert (row["tau"], row["masking"], row["rule"], row["fbmem_version"], row["torch"]) == (
        0.8,
        "masked",
        "paper",
        "0.1.0",
        "2.0",
    )
    assert (row["seconds"], row["started_at"], row["is_uniform"]) == (60.0, NOW, True)


def test_a_mitigated_image_is_no_finding_of_the_model(tmp_path):
    store = drawn_store(tmp_path)
    row = blank("labels", method="fade", prompt_id="owl", seed=0, masking="masked", rule="paper", label="NM",
                full_similarity=0.1, full_reference_id="r0")  # fmt: skip
    store.write("labels", KEY, [row], shard="mitigated")
    assert query(store, "SELECT count(*) FROM findings").rows() == [(12,)]
    assert query(store, "SELECT method, label, similarity FROM mitigated_findings").rows() == [("fade", "NM", 0.1)]


@pytest.mark.slow
def test_views_answer_within_a_second_at_a_hundred_thousand_images(tmp_path):
    import duckdb

    store = drawn_store(tmp_path)
    prompts, seeds, references = 20_000, 5, 500
    images = pl.DataFrame({"at": range(prompts * seeds)}).with_columns(
        pl.lit(KEY).alias("checkpoint"), pl.lit("none").alias("method"),
        ("p" + (pl.col("at") // seeds).cast(pl.String)).alias("prompt_id"), (pl.col("at") % seeds).alias("seed"),
        ("r" + (pl.col("at") % references).cast(pl.String)).alias("reference_id"),
        ((pl.col("at") * 7919 % 1000) / 1000).alias("similarity"),
    )  # fmt: skip
    label = pl.when(pl.col("similarity") >= 0.8).then(pl.lit("VM")).otherwise(pl.lit("NM"))
    columns = {f"{name}_similarity": pl.col("similarity") for name in ("full", "foreground", "background")}
    columns |= {f"{name}_reference_id": pl.col("reference_id") for name in ("full", "foreground", "background")}
    _put(store, "labels", images.with_columns(label=label, masking=pl.lit("masked"), rule=pl.lit("paper"), **columns))
    paths = images.with_columns(
        path=pl.col("prompt_id") + "-" + pl.col("seed").cast(pl.String), sha256=pl.lit("0" * 64)
    )
    _put(store, "generations", paths)
    image_id = pl.concat_str([pl.lit("none"), "prompt_id", pl.col("seed").cast(pl.String)], separator="/")
    _put(
        store, "masks", images.with_columns(image_id=image_id, image_kind=pl.lit("generation"), foreground_fraction=0.5)
    )
    _put(store, "prompts", images.unique("prompt_id").with_columns(prompt=pl.col("prompt_id")))
    _put(store, "reference_images", images.unique("reference_id").with_columns(status=pl.lit("ok")))
    questions = (
        "SELECT label, count(*) FROM findings GROUP BY label",
        "SELECT * FROM findings WHERE is_copy ORDER BY similarity DESC LIMIT 20",
        "SELECT * FROM prompt_findings ORDER BY k DESC LIMIT 20",
        "SELECT * FROM reference_findings ORDER BY num_images DESC LIMIT 20",
        "SELECT * FROM audits",
    )
    with duckdb.connect(build_warehouse(store), read_only=True) as connection:
        connection.execute("SET threads = 2")
        for question in questions:
            used = time.process_time()
            assert connection.execute(question).fetchall()
            assert time.process_time() - used < 2  # CPU of two cores: a second of both


def _put(store, table, frame):
    from fbmem_core.store.schemas import TABLES

    schema = TABLES[table].schema
    missing = [pl.lit(None).alias(name) for name in schema.names if name not in frame.columns]
    rows = frame.with_columns(missing).select(schema.names).to_arrow().cast(schema)
    folder = store.table_dir(table, KEY)
    for path in folder.glob("*.parquet"):
        path.unlink()
    pl.DataFrame(rows).write_parquet(folder / "all.parquet")
