"""One graph on every executor: which is chosen, what a step asks for, and that the shipped instances are valid."""

import os
import subprocess
import sys
import textwrap

import dagster as dg
import pytest
import yaml
from dagster._core.instance.config import dagster_instance_config_schema
from dagster._core.test_utils import instance_for_test

from fbmem_assets.definitions import defs
from fbmem_assets.orchestration.executors import choose_executor
from fbmem_assets.orchestration.runs import HOLDER_TAG, PARTITION_TAG, end_dead_runs
from fbmem_core.errors import InputError
from fbmem_core.store.locks import partition_lock
from tests.assets.conftest import PROJECT

KEY = "mine-0123456789ab"
GPU = {
    "generations",
    "seed_agreement",
    "prompt_clusters",
    "activation_statistics",
    "similarity_thresholds",
    "neurons",
}
CPU = {"generation_masks", "reference_masks", "neighbors", "similarities"}


@pytest.mark.parametrize(
    ("name", "executor"),
    [
        ("", "in_process"),
        ("in_process", "in_process"),
        ("multiprocess", "multiprocess"),
        ("k8s", "k8s"),
        ("celery", "celery"),
    ],
)
def test_the_executor_is_the_one_that_is_named(name, executor, monkeypatch):
    monkeypatch.setenv("FBMEM_EXECUTOR", name)
    assert choose_executor().name == executor


def test_an_unknown_executor_is_one_line(monkeypatch):
    monkeypatch.setenv("FBMEM_EXECUTOR", "cloud")
    with pytest.raises(InputError, match=r"in_process, multiprocess, k8s or celery, but got `cloud` in FBMEM_EXECUTOR"):
        choose_executor()


def test_an_executor_whose_package_is_missing_names_the_cure(monkeypatch):
    monkeypatch.setenv("FBMEM_EXECUTOR", "k8s")
    monkeypatch.setitem(sys.modules, "dagster_k8s", None)
    with pytest.raises(InputError, match=r"the package of the executor k8s.*pip install 'fbmem\[k8s\]'"):
        choose_executor()


def _ops():
    """The op that does the work of each asset."""
    found = {}
    for assets in defs.assets:
        [key] = assets.keys
        name = key.to_user_string()
        ops = {op.name: op for op in assets.node_def.iterate_op_defs()}
        found[name] = ops.get(f"{name}_work") or ops[name]
    return found


def test_each_step_works_in_its_pool_and_asks_for_its_gpu_on_every_engine():
    ops = _ops()
    pools = {name: op.pool for name, op in ops.items()}
    assert {name for name, pool in pools.items() if pool == "gpu"} >= GPU
    assert {name for name, pool in pools.items() if pool == "cpu"} >= CPU
    assert {"labels", "warehouse", "audit_diff"} <= {name for name, pool in pools.items() if pool is None}
    for name, op in ops.items():
        assert op.tags.get("dagster-celery/queue") == pools[name]
        assert ("nvidia.com/gpu" in op.tags.get("dagster-k8s/config", "")) == (pools[name] == "gpu")


def test_the_pods_of_gpu_steps_get_one():
    from dagster_k8s.job import get_user_defined_k8s_config

    config = get_user_defined_k8s_config(_ops()["generations"].tags)
    assert config.container_config["resources"]["limits"] == {"nvidia.com/gpu": "1"}


@pytest.mark.parametrize("name", ["in_process", "multiprocess", "k8s", "celery"])
def test_the_definitions_load_with_every_executor(name):
    code = """
        import warnings; warnings.simplefilter("ignore")
        import dagster as dg
        from fbmem_assets.definitions import defs
        dg.Definitions.validate_loadable(defs)
        print(defs.resolve_job_def("audit").executor_def.name)
    """
    environment = os.environ | {"FBMEM_EXECUTOR": name}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=PROJECT)
    assert done.stdout.strip() == name


def _instance_config(path):
    from dagster._config import validate_config

    loaded = yaml.safe_load((PROJECT / path).read_text("utf-8"))
    checked = validate_config(dagster_instance_config_schema(), loaded)
    assert checked.success, [error.message for error in checked.errors]
    return loaded


@pytest.mark.parametrize("path", ["dagster.yaml", "deploy/dagster.k8s.yaml"])
def test_the_shipped_instances_are_valid_and_let_one_run_write_a_partition(path):
    config = _instance_config(path)
    assert config["telemetry"] == {"enabled": False}
    [limit] = config["concurrency"]["runs"]["tag_concurrency_limits"]
    assert (limit["key"], limit["value"], limit["limit"]) == (PARTITION_TAG, {"applyLimitPerUniqueValue": True}, 1)
    assert config["run_monitoring"]["free_slots_after_run_end_seconds"] > 0


def test_the_launcher_of_the_cluster_is_valid(monkeypatch):
    from dagster._config import process_config, resolve_to_config_type
    from dagster_k8s import K8sRunLauncher

    launcher = _instance_config("deploy/dagster.k8s.yaml")["run_launcher"]
    assert (launcher["module"], launcher["class"]) == ("dagster_k8s", K8sRunLauncher.__name__)
    for name in ("FBMEM_NAMESPACE", "FBMEM_IMAGE"):
        monkeypatch.setenv(name, "fbmem")
    checked = process_config(resolve_to_config_type(K8sRunLauncher.config_type()), launcher["config"])
    assert checked.success, [error.message for error in checked.errors]


@pytest.mark.parametrize("asset", ["generations", "generation_masks", "labels"])
def test_the_job_of_a_step_in_the_cluster_is_what_kubernetes_accepts(asset, monkeypatch):
    import kubernetes_validate
    from dagster_k8s.job import DagsterK8sJobConfig, construct_dagster_k8s_job, get_user_defined_k8s_config
    from kubernetes.client import ApiClient

    config = _instance_config("deploy/dagster.k8s.yaml")["run_launcher"]["config"]
    for variable in config["env_vars"]:
        monkeypatch.setenv(variable, "fbmem")
    names = ("instance_config_map", "dagster_home", "env_secrets", "service_account_name", "image_pull_policy")
    job = construct_dagster_k8s_job(
        DagsterK8sJobConfig(
            job_image="registry/fbmem:1", env_vars=config["env_vars"], **{name: config[name] for name in names}
        ),
        args=["dagster", "api", "execute_step"],
        job_name="dagster-step-1",
        user_defined_k8s_config=get_user_defined_k8s_config(_ops()[asset].tags),
    )
    spec = ApiClient().sanitize_for_serialization(job)
    kubernetes_validate.validate(spec, desired_version="1.31", strict=True)
    [container] = spec["spec"]["template"]["spec"]["containers"]
    assert ("nvidia.com/gpu" in str(container.get("resources"))) == (asset == "generations")
    assert {variable["name"] for variable in container["env"]} >= {"FBMEM_STORE", "FBMEM_SHARDS", "DAGSTER_HOME"}
    spec["spec"]["template"]["spec"]["containers"][0]["image"] = ["no", "image"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(spec, desired_version="1.31", strict=True)


KILLED = """
    import os, signal, sys, warnings
    warnings.simplefilter("ignore")
    import dagster as dg
    from fbmem_assets.orchestration.partitions import checkpoint_partitions
    from fbmem_assets.orchestration.resources import AuditStore
    from fbmem_assets.orchestration.runs import HOLDER_TAG

    @dg.asset(pool="gpu", partitions_def=checkpoint_partitions)
    def sampling(store: AuditStore):
        os.kill(os.getpid(), signal.SIGKILL)

    with dg.DagsterInstance.get() as instance:
        instance.add_dynamic_partitions("checkpoint", [sys.argv[2]])
        store = AuditStore(root=sys.argv[1])
        dg.materialize([sampling], instance=instance, partition_key=sys.argv[2], resources={"store": store},
                       tags={HOLDER_TAG: "a process"})
"""


def test_a_killed_run_is_ended_and_gives_its_place_in_the_pool_back(tmp_path):
    with instance_for_test({"concurrency": {"pools": {"default_limit": 1}}}, temp_dir=str(tmp_path)) as instance:
        command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "store"), KEY]
        subprocess.run(command, env=os.environ | {"DAGSTER_HOME": str(tmp_path)}, capture_output=True, check=False)
        [run] = instance.get_runs()
        assert (run.status, run.tags[HOLDER_TAG]) == (dg.DagsterRunStatus.STARTED, "a process")
        slots = instance.event_log_storage.get_concurrency_info
        assert slots("gpu").active_slot_count == 1
        locks = tmp_path / "store" / "locks"
        with partition_lock(locks, KEY, "one at work"):
            assert end_dead_runs(instance, locks) == []
        assert end_dead_runs(instance, locks) == [KEY]
        [run] = instance.get_runs()
        assert run.status == dg.DagsterRunStatus.FAILURE
        assert slots("gpu").active_slot_count == 0
        assert end_dead_runs(instance, locks) == []


def test_no_secret_stands_in_the_shipped_files():
    for path in (PROJECT / "deploy").iterdir():
        text = path.read_text("utf-8")
        assert yaml.safe_load(text)
        assert "password" not in text.lower()
