"""What goes wrong while an audit runs: each ends in one clear line or in the right tables, and a re-run completes."""

import logging
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pytest

from fbmem_core.store.tables import Store
from tests.assets.conftest import PROJECT, TO_LABELS, VARIABLES, WHOLE_GRAPH, assert_same_audit, make_slice, whole_slice

_LONGEST = 1200.0  # seconds for an audit that nothing interrupts


@dataclass(frozen=True)
class Interrupted:
    """An audit that is killed: its file, its tables when nothing happens, its last stage, and what is compared."""

    file: Path
    undisturbed: Store
    until: str
    tables: tuple[str, ...]
    kills: int
    seconds: float


@pytest.fixture
def audit(fbmem, tiny_audit):
    """Audit it up to its labels into a store: `audit(store)`."""
    return lambda store: fbmem("audit", tiny_audit, "--store", store, "--until", "labels")


def test_a_bucket_gets_the_tables_of_a_folder(audit, fbmem, tiny_audited, s3_server, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    url = f"s3://audits/{tmp_path.name}"
    for _ in range(2):
        run = audit(url)
        assert run.exit_code == 0, run.stderr
        assert_same_audit(tiny_audited, Store(url))
    run = fbmem("sql", "select count(*) as n from generations", "--store", url)
    assert run.exit_code == 0, run.stderr
    assert run.stdout == "n\n4\n"


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
def test_a_file_that_broke_is_made_again(audit, logged, tiny_audited, tmp_path, folder):
    store = Store(shutil.copytree(tiny_audited.root, tmp_path / "store"))
    broken = sorted(path for path in (store.root / folder).rglob("*.*") if path.is_file())[0]
    content = broken.read_bytes()
    broken.write_bytes(content[: len(content) // 2])
    run = audit(store.root)
    assert run.exit_code == 0, run.stderr
    assert_same_audit(tiny_audited, store)
    if folder != "tables/generations":  # which is written anew by every run
        assert f"{broken} is broken and is made again" in logged(store)


@pytest.fixture
def interrupted(request, tmp_path):
    """What is killed, how often, and within how many seconds. FBMEM_KILLS=30: every stage of a slice of the canary."""
    kills = os.environ.get("FBMEM_KILLS")
    if kills is None:
        tiny, undisturbed = request.getfixturevalue("tiny_audit"), request.getfixturevalue("tiny_audited")
        return Interrupted(tiny, undisturbed, "labels", TO_LABELS, kills=2, seconds=5)
    file, store = whole_slice(tmp_path / "slice"), Store(tmp_path / "undisturbed")
    whole = Interrupted(file, store, "report", WHOLE_GRAPH, kills=int(kills), seconds=30)
    assert not _kill_after(math.inf, whole, store)
    return whole


def test_kills_at_random_moments_lose_nothing_that_was_finished(interrupted, tmp_path):
    kills = interrupted.kills
    rng, finished, number = random.Random(kills), {}, 0
    while kills:
        store = Store(tmp_path / str(number))
        was_killed = _kill_after(rng.uniform(0, interrupted.seconds), interrupted, store)
        images = {path: path.stat().st_mtime_ns for path in (store.root / "images/generations").rglob("*.png")}
        assert finished.items() <= images.items()  # none was sampled or only written again
        kills, finished = kills - was_killed, images if was_killed else {}
        if not was_killed:
            assert_same_audit(interrupted.undisturbed, store, interrupted.tables)
            number += 1
    store = Store(tmp_path / str(number))
    assert not _kill_after(math.inf, interrupted, store)
    assert_same_audit(interrupted.undisturbed, store, interrupted.tables)


def _kill_after(seconds, interrupted, store):
    """Audit in a process of its own and kill that; False: it ended before, well."""
    command = [
        sys.executable, "-m", "fbmem_assets.commands.main", "audit", interrupted.file, "--store", store.root,
        "--until", interrupted.until,
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES} | {
        "OMP_NUM_THREADS": "1"
    }
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while not (line := process.stderr.readline()).startswith(b"auditing"):
            assert line, "it ended before it began"
        drain = threading.Thread(target=process.stderr.read)
        drain.start()
        try:
            process.wait(min(seconds, _LONGEST))
        except subprocess.TimeoutExpired:
            process.kill()
        drain.join()
    assert process.returncode in (0, -signal.SIGKILL)
    return process.returncode != 0


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_it_at_once_in_one_line(sent, tmp_path):
    file, store = make_slice(tmp_path / "slice", samples_per_prompt=500), Store(tmp_path / "store")
    command = [
        sys.executable,
        "-m",
        "fbmem_assets.commands.main",
        "audit",
        file,
        "--store",
        store.root,
        "--until",
        "generations",
    ]
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environment |= {"OMP_NUM_THREADS": "1", "FBMEM_EXECUTOR": "multiprocess"}  # which this command does not heed
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while not any((store.root / "images/generations").rglob("*.png")):
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(sent)
        _, told = process.communicate(timeout=_LONGEST)
    assert process.returncode == 130
    assert told.count("sampling: 20 of 2000") <= 1  # it was not begun again
    assert told.endswith("fbmem: stopped in generations. What is finished is kept: the same command goes on there.\n")
    assert "Traceback" not in told


def test_a_second_run_of_a_partition_gets_one_line(audit, tiny_audited, tmp_path):
    store = Store(shutil.copytree(tiny_audited.root, tmp_path / "store"))
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


def test_a_database_that_is_open_elsewhere_disturbs_no_run(tiny_audited, tmp_path):
    from fbmem_core.store.warehouse import build_warehouse

    store = Store(shutil.copytree(tiny_audited.root, tmp_path / "store"))
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
