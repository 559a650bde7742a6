"""Watching checkpoints: Dagster's own daemon code over a real instance and a real code server.

The clock is turned by hand. Runs are queued and never started: what counts is which there are.
"""

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import dagster as dg
import pytest
import yaml
from dagster._core.test_utils import create_test_daemon_workspace_context, freeze_time, wait_for_futures
from dagster._core.workspace.load_target import ModuleTarget
from dagster._daemon import get_default_daemon_logger
from dagster._daemon.sensor import execute_sensor_iteration
from PIL import Image

from fbmem_assets.orchestration.resources import AuditStore
from fbmem_assets.orchestration.sensors import INTERVAL_SECONDS
from fbmem_core.audit.results import read_record
from fbmem_core.store.tables import Store
from tests.assets.conftest import PROJECT

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the audit files lie that are watched."""
    return tmp_path_factory.mktemp("audits")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def instance(tmp_path_factory):
    """An instance whose runs wait in a queue for ever."""
    overrides = {
        "run_coordinator": {"module": "dagster._core.run_coordinator", "class": "QueuedRunCoordinator"},
        "telemetry": {"enabled": False},
    }
    with dg.instance_for_test(overrides, temp_dir=str(tmp_path_factory.mktemp("instance"))) as found:
        yield found


class Daemon:
    """Dagster's daemon between a start and an end, asked for a tick at a time."""

    def __init__(self, instance):
        self.instance = instance
        self.now = time.time()

    def __enter__(self):
        target = ModuleTarget(
            "fbmem_assets.definitions", attribute=None, working_directory=str(PROJECT), location_name="f"
        )
        self._context = create_test_daemon_workspace_context(target, self.instance)
        self._workspace = self._context.__enter__()
        return self

    def __exit__(self, *error):
        self._context.__exit__(*error)

    def tick(self, times=1):
        """Let `times` ticks pass; the skip reason of the last one."""
        for _ in range(times):
            self.now += INTERVAL_SECONDS + 1
            with freeze_time(self.now), ThreadPoolExecutor() as pool:
                futures = {}
                logger = get_default_daemon_logger("SensorDaemon")
                list(execute_sensor_iteration(self._workspace, logger, pool, None, sensor_tick_futures=futures))
                wait_for_futures(futures, timeout=60)
        [state] = self.instance.all_instigator_state()
        [last] = self.instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1)
        assert last.error is None, last.error.to_string()
        return last.skip_reason


@pytest.fixture(scope="module")
def daemon(instance, folder, store):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_CACHE", str(folder / "hub"))
        patch.setenv("FBMEM_AUDITS", str(folder))
        patch.setenv("FBMEM_STORE", str(store.root))
        with Daemon(instance) as running:
            yield running


@pytest.fixture
def watched(folder, tiny_checkpoint, tmp_path):
    """(audit file, directory of its checkpoint): one audit of its own name in the folder, gone after the test."""
    name = tmp_path.name.lower()
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("a cat\n")
    (tmp_path / "references").mkdir()
    Image.effect_noise((16, 16), 50).save(tmp_path / "references" / "cat.png")
    audit = {
        "name": name, "checkpoint": str(checkpoint), "prompts": str(tmp_path / "prompts.txt"),
        "references": str(tmp_path / "references"),
    }  # fmt: skip
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(audit))
    yield file, checkpoint
    file.unlink()


def runs(instance, file):
    """(partition, run_key) of every run of this audit, the oldest first."""
    tags = [run.tags for run in instance.get_runs()][::-1]
    found = [(tag["dagster/partition"], tag["dagster/run_key"]) for tag in tags]
    return [(key, run_key) for key, run_key in found if key.startswith(f"{file.stem}-")]


def partitions(instance, file):
    return [key for key in instance.get_dynamic_partitions("checkpoint") if key.startswith(f"{file.stem}-")]


def replace_weights(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def finish(instance, file, status=dg.DagsterRunStatus.SUCCESS):
    """What the run would have come to."""
    for run in instance.get_runs():
        if run.tags["dagster/partition"].startswith(f"{file.stem}-") and not run.is_finished:
            instance.add_run_tags(run.run_id, {})
            instance.handle_run_event(run.run_id, _event(run, status))


def _event(run, status):
    kind = {
        dg.DagsterRunStatus.SUCCESS: dg.DagsterEventType.RUN_SUCCESS,
        dg.DagsterRunStatus.FAILURE: dg.DagsterEventType.RUN_FAILURE,
    }[status]
    return dg.DagsterEvent(event_type_value=kind.value, job_name=run.job_name)


def test_a_new_audit_file_is_one_partition_and_one_run(daemon, instance, store, watched):
    file, checkpoint = watched
    assert "looking again" in daemon.tick()
    assert daemon.tick() is None
    daemon.tick(3)
    [(key, run_key)] = runs(instance, file)
    assert partitions(instance, file) == [key]
    assert run_key.startswith(f"{key}:")
    audit, found = read_record(store, key)
    assert (audit.name, found.directory) == (file.stem, checkpoint)


def test_replacing_one_weight_file_is_one_new_partition_and_one_run(daemon, instance, watched):
    file, checkpoint = watched
    daemon.tick(2)
    finish(instance, file)
    replace_weights(checkpoint / WEIGHTS)
    daemon.tick(4)
    found = runs(instance, file)
    assert len(found) == len({key for key, _ in found}) == 2
    assert partitions(instance, file) == [key for key, _ in found]


def test_touching_a_file_is_no_run(daemon, instance, watched):
    file, checkpoint = watched
    daemon.tick(2)
    finish(instance, file)
    os.utime(checkpoint / WEIGHTS, (1, 1))
    assert "looking again" in daemon.tick()
    daemon.tick(3)
    assert len(runs(instance, file)) == len(partitions(instance, file)) == 1


def test_a_checkpoint_that_is_still_being_copied_is_waited_for(daemon, instance, watched):
    file, checkpoint = watched
    whole = (checkpoint / WEIGHTS).read_bytes()
    for part in (0, len(whole) // 3, len(whole) - 1):
        (checkpoint / WEIGHTS).write_bytes(whole[:part])
        assert "all bytes of the weights" in daemon.tick(3)
    shutil.rmtree(checkpoint / "vae")
    (checkpoint / WEIGHTS).write_bytes(whole)
    assert "component `vae`" in daemon.tick(3)
    assert runs(instance, file) == []


def test_a_half_written_checkpoint_is_audited_once_it_is_complete(daemon, instance, watched):
    file, checkpoint = watched
    config, weights = checkpoint / "unet" / "config.json", checkpoint / WEIGHTS
    whole = {path: path.read_bytes() for path in (config, weights)}
    for path, content in whole.items():
        path.write_bytes(content[: len(content) // 2])
    daemon.tick(2)
    weights.write_bytes(whole[weights])
    assert "whole JSON" in daemon.tick(2)
    config.write_bytes(whole[config])
    assert "looking again" in daemon.tick()
    assert len(runs(instance, file)) == 0
    daemon.tick(3)
    assert len(runs(instance, file)) == 1


def test_a_checkpoint_that_moves_between_two_ticks_is_not_hashed(daemon, instance, watched):
    file, checkpoint = watched
    for seconds in range(4):
        os.utime(checkpoint / WEIGHTS, (seconds, seconds))
        assert "looking again" in daemon.tick()
    assert runs(instance, file) == []
    daemon.tick()
    assert len(runs(instance, file)) == 1


def test_files_that_cannot_be_used_stop_no_other_audit(daemon, instance, watched, folder):
    file, _ = watched
    broken = folder / "a-broken.yaml"
    broken.write_text("name: [")
    twin = folder / "z-twin.yaml"
    twin.write_text(file.read_text())
    try:
        reason = daemon.tick(3)
    finally:
        broken.unlink()
        twin.unlink()
    assert "a-broken.yaml: Expected a YAML mapping" in reason
    assert "is being audited" in reason
    assert len(runs(instance, file)) == 1


def test_an_edited_audit_file_is_audited_again_after_the_run_in_work(daemon, instance, store, watched):
    file, _ = watched
    daemon.tick(2)
    file.write_text(file.read_text() + "# no other setting\n")
    daemon.tick(2)
    file.write_text(file.read_text() + "samples_per_prompt: 3\n")
    assert "is being audited; waiting" in daemon.tick(2)
    [key] = partitions(instance, file)
    assert read_record(store, key)[0].samples_per_prompt == 5
    finish(instance, file)
    daemon.tick(2)
    assert len(runs(instance, file)) == 2
    assert partitions(instance, file) == [key]
    assert read_record(store, key)[0].samples_per_prompt == 3


def test_a_failed_audit_runs_again_when_its_files_are_touched(daemon, instance, watched):
    file, checkpoint = watched
    daemon.tick(2)
    finish(instance, file, dg.DagsterRunStatus.FAILURE)
    daemon.tick(2)
    assert len(runs(instance, file)) == 1
    os.utime(checkpoint / WEIGHTS, (1, 1))
    daemon.tick(3)
    assert len(runs(instance, file)) == 2
    finish(instance, file)
    os.utime(checkpoint / WEIGHTS, (2, 2))
    daemon.tick(3)
    assert len(runs(instance, file)) == 2


def test_another_daemon_requests_nothing_again(daemon, instance, watched):
    file, _ = watched
    daemon.tick(2)
    finish(instance, file)
    with Daemon(instance) as restarted:
        restarted.now = daemon.now
        restarted.tick(3)
        assert len(runs(instance, file)) == 1
        [state] = instance.all_instigator_state()
        # the worst moment: the run was made, the cursor never kept
        instance.update_instigator_state(state.with_data(state.instigator_data._replace(cursor="{}")))
        restarted.tick(3)
        daemon.now = restarted.now
    assert len(runs(instance, file)) == len(partitions(instance, file)) == 1


def test_a_hub_id_is_watched_by_its_commit(daemon, instance, store, watched, folder, tiny_checkpoint):
    file, _ = watched
    commit = "a" * 40
    shutil.copytree(tiny_checkpoint, folder / "hub" / "models--someone--tiny" / "snapshots" / commit)
    settings = yaml.safe_load(file.read_text()) | {"checkpoint": "someone/tiny"}
    file.write_text(yaml.safe_dump(settings))
    reason = daemon.tick(3)
    assert "Expected the revision `main` of `someone/tiny`" in reason
    assert "the Hugging Face hub. Check the id and the network." in reason
    assert runs(instance, file) == []
    file.write_text(yaml.safe_dump(settings | {"revision": commit}))
    daemon.tick(3)
    [(key, _)] = runs(instance, file)
    assert read_record(store, key)[1].revision == commit


def test_the_schedule_audits_the_newest_checkpoint_again_unless_it_is_being_audited(daemon, instance, store, watched):
    from fbmem_assets.orchestration.sensors import reaudit

    def requested():
        resources = {"store": AuditStore(root=str(store.root))}
        with dg.build_schedule_context(
            instance, resources=resources, scheduled_execution_time=datetime(2026, 1, 4, 3, tzinfo=UTC)
        ) as context:
            return [found.partition_key for found in reaudit(context) if isinstance(found, dg.RunRequest)]

    file, checkpoint = watched
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FBMEM_AUDITS", str(file.parent))
        assert requested() == []
        daemon.tick(2)
        assert requested() == []
        finish(instance, file)
        replace_weights(checkpoint / WEIGHTS)
        daemon.tick(3)
        finish(instance, file)
        assert requested() == [partitions(instance, file)[-1]]
