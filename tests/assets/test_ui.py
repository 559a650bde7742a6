"""A run that the Dagster UI starts: a real `dagster dev`, asked through the GraphQL interface that its pages use."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from polars.testing import assert_frame_equal

from fbmem_core.store.tables import Store
from tests.assets.conftest import PROJECT, WHOLE_GRAPH

START_SECONDS = 120
RUN_SECONDS = 900
DEFINITIONS = """{ repositoriesOrError { ... on RepositoryConnection { nodes {
    name location { name } assetNodes { assetKey { path } groupName description } } } } }"""
LAUNCH = """mutation($params: ExecutionParams!) { launchRun(executionParams: $params) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
STATUS = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"


@pytest.fixture
def ui(tmp_path, audited):
    """(ask, store, partition key) of a UI over a fresh store in which the slice is registered."""
    bin_dir, store = Path(sys.executable).parent, tmp_path / "store"
    names = {"DAGSTER_HOME": PROJECT, "FBMEM_STORE": store, "FBMEM_DAGSTER": store / "dagster"}
    environment = os.environ | {name: str(value) for name, value in names.items()}
    register = [bin_dir / "fbmem", "register", audited[1], "--store", store]
    key = subprocess.run(register, env=environment, check=True, capture_output=True, text=True, cwd=PROJECT).stdout
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [bin_dir / "dagster", "dev", "--host", "127.0.0.1", "--port", str(port)],
            cwd=PROJECT, env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip

        def ask(query: str, **variables):
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/graphql",
                data=json.dumps({"query": query, "variables": variables}).encode(),
                headers={"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["data"]

        try:
            yield ask, store, key.strip()
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


@pytest.mark.slow  # minutes: a whole audit by the daemon
def test_a_run_from_the_ui_ends_with_the_rows_of_the_command(ui, audited):
    ask, store, key = ui
    [repository] = wait_for(lambda: ask(DEFINITIONS)["repositoriesOrError"].get("nodes"), START_SECONDS)
    assert len(repository["assetNodes"]) == 43
    assert all(node["groupName"] != "default" and node["description"] for node in repository["assetNodes"])
    params = {
        "selector": {
            "repositoryLocationName": repository["location"]["name"],
            "repositoryName": repository["name"],
            "jobName": "audit",
        },
        "runConfigData": {},
        "executionMetadata": {"tags": [{"key": "dagster/partition", "value": key}]},
    }
    run_id = ask(LAUNCH, params=params)["launchRun"]["run"]["runId"]

    def ended():
        status = ask(STATUS, id=run_id)["runOrError"]["status"]
        return status if status in ("SUCCESS", "FAILURE", "CANCELED") else None

    assert wait_for(ended, RUN_SECONDS) == "SUCCESS"
    for name in WHOLE_GRAPH:
        ours, theirs = (rows_of(Store(root), name, key) for root in (store, audited[0]))
        assert_frame_equal(ours, theirs)


def rows_of(store, name, key):
    rows = store.read(name, key)
    rows = rows.drop("created_at", "seconds", strict=False)  # times are another run's
    return rows.sort(rows.columns)


def wait_for(ask, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if answer := ask():
                return answer
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            pass  # not up yet
        time.sleep(1)
    raise AssertionError(f"no answer within {seconds} s")
