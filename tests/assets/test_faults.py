"""What goes wrong while an audit runs: each ends in one clear line or in the right tables, and a re-run completes."""

import logging
import shutil
import subprocess
import sys

import duckdb
import pytest
import yaml
from PIL import Image
from polars.testing import assert_frame_equal

from fbmem_core.store.tables import Store
from tests.assets.conftest import PROJECT

TABLES = ("prompts", "reference_images", "generations", "masks", "neighbors", "similarities", "labels", "rejected")


@pytest.fixture(scope="module")
def audit_file(tmp_path_factory, tiny_checkpoint, tiny_segmenter):
    """An audit of four images by untrained networks, which takes seconds up to its labels."""
    folder = tmp_path_factory.mktemp("audit")
    (folder / "references").mkdir()
    for number in range(3):
        Image.effect_noise((64, 64), 40 + number).convert("RGB").save(folder / "references" / f"{number}.png")
    (folder / "prompts.txt").write_text("a cat\nan owl\n")
    audit = {
        "name": "tiny", "checkpoint": str(tiny_checkpoint), "prompts": "prompts.txt", "references": "references",
        "samples_per_prompt": 2, "segmentation": {"model": str(tiny_segmenter)}, "similarity": {"size": 176},
        "sampling": {"steps": 1, "height": 64, "width": 64, "device": "cpu", "batch_size": 1},
    }  # fmt: skip
    (folder / "audit.yaml").write_text(yaml.safe_dump(audit))
    return folder / "audit.yaml"


@pytest.fixture(scope="module")
def undisturbed(audit_file, tmp_path_factory):
    """The store of the audit when nothing went wrong; tests only read it."""
    import torch
    from click.testing import CliRunner

    from fbmem_assets.cli import main
    from tests.assets.conftest import VARIABLES

    store = tmp_path_factory.mktemp("undisturbed")
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.setenv(name, "")
            patch.delenv(name)
        done = CliRunner().invoke(main, ["audit", str(audit_file), "--store", str(store), "--until", "labels"])
    assert done.exit_code == 0, done.stderr
    return Store(store)


@pytest.fixture
def audit(fbmem, audit_file):
    """Audit it up to its labels into a store: `audit(store)`."""
    return lambda store: fbmem("audit", audit_file, "--store", store, "--until", "labels")


def assert_same(store, other):
    [key] = store.partitions("checkpoints")
    for table in TABLES:
        assert_frame_equal(store.read(table, key), other.read(table, key))
    assert store.read("labels", key).height == 4


def test_a_bucket_gets_the_tables_of_a_folder(audit, fbmem, undisturbed, s3_server, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    url = f"s3://audits/{tmp_path.name}"
    for _ in range(2):
        run = audit(url)
        assert run.exit_code == 0, run.stderr
        assert_same(undisturbed, Store(url))
    run = fbmem("sql", "select count(*) as n from generations", "--store", url)
    assert run.exit_code == 0, run.stderr
    assert " 4 " in run.stdout


@pytest.fixture
def logged(monkeypatch):
    """The warnings of a store's last run, as the UI shows them: `logged(store)`."""
    import dagster as dg

    def read(store):
        monkeypatch.setenv("FBMEM_DAGSTER", str(store.root / "dagster"))
        monkeypatch.setenv("DAGSTER_HOME", str(PROJECT))
        with dg.DagsterInstance.get() as instance:
            [run] = instance.get_runs(limit=1)
            logs = instance.all_logs(run.run_id)
            return "\n".join(entry.user_message for entry in logs if entry.level == logging.WARNING)

    return read


@pytest.mark.parametrize("folder", ["images/generations", "images/masks", "tables/neighbors", "tables/generations"])
def test_a_file_that_broke_is_made_again(audit, logged, undisturbed, tmp_path, folder):
    store = Store(shutil.copytree(undisturbed.root, tmp_path / "store"))
    broken = sorted(path for path in (store.root / folder).rglob("*.*") if path.is_file())[0]
    content = broken.read_bytes()
    broken.write_bytes(content[: len(content) // 2])
    run = audit(store.root)
    assert run.exit_code == 0, run.stderr
    assert_same(undisturbed, store)
    if folder != "tables/generations":  # which is written anew by every run
        assert f"{broken} is broken and is made again" in logged(store)


def test_a_second_run_of_a_partition_gets_one_line(audit, undisturbed, tmp_path):
    store = Store(shutil.copytree(undisturbed.root, tmp_path / "store"))
    [key] = store.partitions("checkpoints")
    code = (
        "import sys; from pathlib import Path; from fbmem_core.store.locks import partition_lock\n"
        "with partition_lock(Path(sys.argv[1]), sys.argv[2], 'first'): print('held', flush=True); input()"
    )
    command = [sys.executable, "-c", code, store.local / "locks", key]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        run = audit(store.root)
        process.kill()
    assert run.exit_code == 2
    [line] = [line for line in run.stderr.splitlines() if line.startswith("fbmem: ")]
    assert f"Expected no other run of {key}, but got one at work: first. Wait until it ends" in line
    assert "Traceback" not in run.stderr
    assert audit(store.root).exit_code == 0  # the killed one holds nothing any more


def test_a_database_that_is_open_elsewhere_disturbs_no_run(undisturbed, tmp_path):
    from fbmem_core.store.warehouse import build_warehouse

    store = Store(shutil.copytree(undisturbed.root, tmp_path / "store"))
    path = build_warehouse(store)
    code = (
        "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); input()\n"
        "print(c.sql('select count(*) from labels').fetchall())"
    )
    command = [sys.executable, "-c", code, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "open\n"
        assert build_warehouse(store) == path
        answer, _ = process.communicate("\n")
    assert answer.strip() == "[(4,)]"
    with duckdb.connect(path, read_only=True) as connection:
        assert connection.sql("select count(*) from labels").fetchall() == [(4,)]
