"""One audit in several steps on several processes: the same rows, and a process that dies costs its shard alone."""

import os
import signal
import subprocess
import sys
import time

import dagster as dg
import pytest

from fbmem_assets.orchestration.partitions import register_audit
from fbmem_assets.orchestration.shards import Part, _take_gpu, num_shards
from fbmem_core.errors import InputError
from fbmem_core.store.tables import Store
from tests.assets.conftest import PROJECT, WHOLE_GRAPH, assert_same_audit, whole_slice

VICTIM = "generations.generations_work[2_of_4]"
TO_LABELS = " or ".join(
    f"group:{stage}" for stage in ("prompts", "generations", "masks", "neighbors", "similarities", "labels")
)


def run_in_processes(folder, key, store, groups=TO_LABELS):
    """Start the audit, up to its labels by default, in four shards on two processes; the instance lies in `folder`."""
    environment = os.environ | {
        "FBMEM_EXECUTOR": "multiprocess", "FBMEM_SHARDS": "4", "FBMEM_STORE": str(store), "DAGSTER_HOME": str(folder),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [
        sys.executable, "-m", "dagster", "asset", "materialize", "--select", groups, "--partition", key,
        "-m", "fbmem_assets.definitions",
    ]  # fmt: skip
    return subprocess.Popen(command, env=environment, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_parts_are_disjoint_and_together_the_whole():
    parts = [Part(number, 3).of(range(8)) for number in (1, 2, 3)]
    assert parts == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert [Part.from_key(Part(n, 12).key) for n in (1, 12)] == [Part(1, 12), Part(12, 12)]
    assert Part(3, 3).of("ab") == []


@pytest.mark.parametrize(("text", "count"), [("", 1), ("1", 1), ("16", 16)])
def test_the_number_of_shards_is_the_one_that_is_set(text, count, monkeypatch):
    monkeypatch.setenv("FBMEM_SHARDS", text)
    assert num_shards() == count


@pytest.mark.parametrize("text", ["0", "-2", "many", "1.5", "²"])
def test_any_other_number_of_shards_is_one_line(text, monkeypatch):
    monkeypatch.setenv("FBMEM_SHARDS", text)
    with pytest.raises(InputError, match=rf"a number of steps from 1 on, but got `{text}` in FBMEM_SHARDS"):
        num_shards()


@pytest.mark.parametrize(
    ("executor", "part", "gpus", "chosen"),
    [
        ("multiprocess", Part(1, 4), 4, [0]),
        ("multiprocess", Part(4, 4), 4, [3]),
        ("multiprocess", Part(4, 4), 2, [1]),
        ("multiprocess", Part(2, 4), 1, []),
        ("multiprocess", Part(1, 1), 4, []),
        ("in_process", Part(2, 4), 4, []),  # the model is loaded already, on one of them
        ("k8s", Part(2, 4), 4, []),  # the pod sees its own
    ],
)
def test_a_shard_of_one_machine_takes_its_own_gpu(executor, part, gpus, chosen, monkeypatch):
    taken = []
    monkeypatch.setenv("FBMEM_EXECUTOR", executor)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("torch.cuda.set_device", taken.append)
    _take_gpu(part)
    assert taken == chosen


def test_four_shards_on_two_processes_one_of_them_killed(tiny_audit, tiny_audited, tmp_path):
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\nconcurrency: {pools: {default_limit: 2}}\n")
    store = Store(tmp_path / "store")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        key = register_audit(tiny_audit, store, instance)
        with run_in_processes(tmp_path, key, store.root) as process:
            killed = _kill(instance, process)
            output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output.decode()
        assert killed
        [run] = instance.get_runs()
        events = [log.dagster_event for log in instance.all_logs(run.run_id) if log.dagster_event is not None]
    assert_same_audit(tiny_audited, store)
    started = [event.step_key for event in events if event.event_type_value == "STEP_START"]
    again = [event.step_key for event in events if event.event_type_value == "STEP_RESTARTED"]
    assert again == [VICTIM]
    work = [step for step in started if "_work[" in step]
    assert len(set(work)) == len(work) == 16  # four stages of four shards
    pids = {event.pid for event in events if event.step_key in work}
    assert len(pids) > 2


@pytest.mark.skipif(not os.environ.get("FBMEM_WHOLE_GRAPH"), reason="takes minutes; FBMEM_WHOLE_GRAPH=1 runs it")
def test_four_shards_of_every_stage_equal_one_process(fbmem, tmp_path):
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\nconcurrency: {pools: {default_limit: 2}}\n")
    file, one, four = whole_slice(tmp_path / "slice"), Store(tmp_path / "one"), Store(tmp_path / "four")
    run = fbmem("audit", file, "--store", one.root)
    assert run.exit_code == 0, run.stderr
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        key = register_audit(file, four, instance)
        with run_in_processes(tmp_path, key, four.root, "*") as process:
            output, _ = process.communicate()
        assert process.returncode == 0, output.decode()
    assert_same_audit(one, four, WHOLE_GRAPH)


def _kill(instance, process):
    """Kill the process of one shard as soon as it is at work."""
    while process.poll() is None:
        for run in instance.get_runs():
            for log in instance.all_logs(run.run_id):
                event = log.dagster_event
                if event is not None and event.step_key == VICTIM and event.event_type_value == "STEP_START":
                    os.kill(event.pid, signal.SIGKILL)
                    return True
        time.sleep(0.05)
    return False
