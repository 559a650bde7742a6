"""One audit on two Celery workers with a real broker and the store in a bucket; one worker is killed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import dagster as dg
import pytest
import yaml

from fbmem_assets.orchestration.partitions import register_audit
from fbmem_core.store.tables import Store
from tests.assets.conftest import PROJECT, assert_same_audit
from tests.assets.test_shards import TO_LABELS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs redis-server: apt install redis-server"),
]
VICTIM = "generations.generations_work[2_of_4]"
REDELIVERED_AFTER = 10  # seconds


@pytest.fixture
def broker(tmp_path):
    """The URL of a Redis server of this test."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        yield f"redis://127.0.0.1:{port}/0"
        server.terminate()


def worker_config(folder):
    """The shipped configuration, but that a dead worker's step is given to the other one soon."""
    config = yaml.safe_load((PROJECT / "deploy" / "celery.yaml").read_text("utf-8"))
    options = config["execution"]["config"]["config_source"]["broker_transport_options"]
    options |= {"visibility_timeout": REDELIVERED_AFTER, "max_retries": 10}
    path = folder / "celery.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@contextmanager
def worker(name, environment, config, log):
    """A worker in a process group of its own, with a home of its own, as on another machine."""
    command = [
        sys.executable, "-m", "dagster_celery.cli", "worker", "start", "-A", "dagster_celery.app", "--name", name,
        "-y", str(config),
        "-q", "gpu,cpu,dagster", "--", "--concurrency", "1",
    ]  # fmt: skip
    home = log.with_name(f"home-{name}")
    home.mkdir()
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=environment | {"HOME": str(home)}, cwd=PROJECT, stdout=out, stderr=out, start_new_session=True
        )
        try:
            yield process
        finally:
            kill(process)


def kill(process):
    """Kill a worker with all its processes."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def kill_the_worker_of(step, instance, workers, run):
    """Wait until the step has begun, kill the worker that works on it, and return that worker's name."""
    while run.poll() is None:
        assert all(process.poll() is None for process in workers.values()), "a worker ended by itself"
        for name in workers:
            if any(host.startswith(f"{name}@") for host in hosts_of(step, instance)):
                kill(workers[name])
                return name
        time.sleep(0.1)
    return None


def hosts_of(step, instance):
    """The workers that began a step of any run."""
    entries = [entry for started in instance.get_runs() for entry in instance.all_logs(started.run_id)]
    events = [entry.dagster_event for entry in entries if entry.dagster_event is not None]
    for event in events:
        if event.step_key == step and event.event_type_value == "ENGINE_EVENT":
            host = event.engine_event_data.metadata.get("Celery worker")
            if host is not None:
                yield str(host.value)


def test_two_workers_of_which_one_is_killed(tiny_audit, tiny_audited, s3_server, broker, tmp_path):
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\nconcurrency: {pools: {default_limit: 2}}\n")
    store = Store(f"s3://audits/{tmp_path.name}")
    environment = os.environ | {
        "FBMEM_EXECUTOR": "celery", "FBMEM_SHARDS": "4", "FBMEM_STORE": f"s3://audits/{tmp_path.name}",
        "FBMEM_BROKER": broker, "DAGSTER_HOME": str(tmp_path), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    config = worker_config(tmp_path)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        key = register_audit(tiny_audit, store, instance)
        command = [
            sys.executable, "-m", "dagster", "asset", "materialize", "--select", TO_LABELS, "--partition", key,
            "-m", "fbmem_assets.definitions",
        ]  # fmt: skip
        with (
            worker("one", environment, config, tmp_path / "one.log") as one,
            worker("two", environment, config, tmp_path / "two.log") as two,
            subprocess.Popen(
                command, env=environment, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            ) as run,
        ):
            killed = kill_the_worker_of(VICTIM, instance, {"one": one, "two": two}, run)
            output, _ = run.communicate(timeout=600)
        assert run.returncode == 0, output.decode() + (tmp_path / "one.log").read_text()
        assert killed
        [finished] = instance.get_runs()
        events = [entry.dagster_event for entry in instance.all_logs(finished.run_id) if entry.dagster_event]
    started = [event.step_key for event in events if event.event_type_value == "STEP_START"]
    assert started.count(VICTIM) == 2  # by the worker that was killed and by the other one
    assert_same_audit(tiny_audited, store)
