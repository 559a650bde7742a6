"""Executors: where the steps of a run are executed, and what they need there. The assets are the same everywhere."""

from __future__ import annotations

import os
from typing import Any

import dagster as dg

from fbmem_core.errors import InputError

EXECUTOR_VARIABLE = "FBMEM_EXECUTOR"
BROKER_VARIABLE = "FBMEM_BROKER"
# a step takes a place in its pool while it runs; how many there are is set per instance, 1 unless told otherwise
GPU, CPU = "gpu", "cpu"
_POOLS = {
    "generations": GPU, "seed_agreement": GPU, "prompt_clusters": GPU, "activation_statistics": GPU,
    "similarity_thresholds": GPU, "neurons": GPU, "attacks": GPU, "image_quality": GPU,
    "masks": CPU, "neighbors": CPU, "similarities": CPU,
}  # fmt: skip
# a step's process starts with what takes seconds to import
_FORKS = {"start_method": {"forkserver": {"preload_modules": ["torch", "diffusers", "fbmem_assets.definitions"]}}}
_GPU_POD = {"container_config": {"resources": {"limits": {"nvidia.com/gpu": "1"}}}}


def pool_of(table: str) -> str | None:
    """The pool in which the assets that write this table work; None for those that only sum up."""
    return _POOLS.get(table)


def step_tags(table: str) -> dict[str, Any]:
    """Tags that cluster engines read: a GPU for a step's pod (dagster-k8s), its queue (dagster-celery)."""
    pool = pool_of(table)
    if pool is None:
        return {}
    return {"dagster-celery/queue": pool} | ({"dagster-k8s/config": _GPU_POD} if pool == GPU else {})


def retry_policy() -> dg.RetryPolicy | None:
    """Once more where steps are processes, because one may die alone; in one process an interrupt would count too."""
    return None if _name() == "in_process" else dg.RetryPolicy(max_retries=1)


def choose_executor() -> dg.ExecutorDefinition:
    """The executor that FBMEM_EXECUTOR names: in_process (the default), multiprocess, k8s or celery.

    Raises:
        InputError: Another name, or its package is missing.
    """
    name = _name()
    if name == "in_process":  # one process loads each model once
        return dg.in_process_executor
    if name == "multiprocess":
        return dg.multiprocess_executor.configured(_FORKS, name=name)
    try:
        if name == "k8s":
            from dagster_k8s import k8s_job_executor

            return k8s_job_executor
        if name == "celery":
            from dagster_celery import celery_executor

            return _with_broker(celery_executor)
    except ImportError as error:
        cure = f"pip install 'fbmem[{name}]'"
        raise InputError(f"the package of the executor {name}", error, where=EXECUTOR_VARIABLE, cure=cure) from None
    executors = "in_process, multiprocess, k8s or celery"
    raise InputError(executors, f"`{name}`", where=EXECUTOR_VARIABLE, cure="Name one of them.")


def _with_broker(executor: dg.ExecutorDefinition) -> dg.ExecutorDefinition:
    """Celery with the broker that FBMEM_BROKER names; where it is not set, as the run's own configuration says."""
    if not os.environ.get(BROKER_VARIABLE):
        return executor
    broker = {"env": BROKER_VARIABLE}
    return executor.configured({"broker": broker, "backend": broker}, name="celery")


def _name() -> str:
    return os.environ.get(EXECUTOR_VARIABLE) or "in_process"
