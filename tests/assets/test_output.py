"""How commands print rows: whole in a pipe, readable on a terminal, in whatever a terminal can show."""

import json
import subprocess
import sys
from datetime import UTC, datetime

import polars as pl
import pytest

from fbmem_assets.commands.output import show
from fbmem_core.store.tables import Store
from tests.core.evidence import KEY, drawn_store

ROWS = pl.DataFrame({
    "name": ["x" * 250 + "END", None], "list": [["a", "b", "c", "d"], []], "value": [0.1234567891, 2.0],
    "sure": [True, None],
})  # fmt: skip


def printed(capsys, form):
    show(ROWS, form)
    return capsys.readouterr().out


def test_a_pipe_gets_whole_values(capsys):
    assert printed(capsys, "auto").splitlines() == [
        "name\tlist\tvalue\tsure",
        "x" * 250 + 'END\t"[""a"", ""b"", ""c"", ""d""]"\t0.1234567891\ttrue',
        "\t[]\t2.0\t",
    ]
    assert printed(capsys, "csv").splitlines()[1].startswith("x" * 250 + "END,")
    assert json.loads(printed(capsys, "json"))[0] == {
        "name": "x" * 250 + "END", "list": ["a", "b", "c", "d"], "value": 0.1234567891, "sure": True,
    }  # fmt: skip
    assert printed(capsys, "markdown").splitlines()[3] == "| - | [] | 2.0 | - |"


@pytest.mark.parametrize("columns", [80, 120])
def test_a_table_fits_the_terminal_and_loses_nothing(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = printed(capsys, "table")
    assert max(map(len, shown.splitlines())) <= columns
    assert sum(line.count("x") for line in shown.splitlines()) == 250


def test_numbers_are_never_broken_however_narrow_the_terminal(capsys, monkeypatch):
    names = ["method", *(f"measure_{letter}" for letter in "abcdefgh")]
    rows = pl.DataFrame([["none", *[0.125] * 8], ["nemo_c", *[1.25] * 8]], schema=names, orient="row")
    for columns, is_upright in ((160, True), (80, False), (30, False), (24, False)):
        monkeypatch.setenv("COLUMNS", str(columns))
        show(rows, "table")
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= columns
        assert sum(line.count("0.125") for line in lines) == sum(line.count("1.25") for line in lines) == 8
        assert any("measure_a" in line and "measure_b" in line for line in lines) == is_upright


def test_the_help_cuts_no_summary_at_80_columns(fbmem):
    lines = fbmem("--help").stdout.split("Commands:")[1].splitlines()
    assert len([line for line in lines if line.strip()]) >= 14
    assert not [line for line in lines if line.endswith("...")]


def test_a_report_is_written_without_a_warning_of_another_library(tmp_path):
    drawn_store(tmp_path / "store")
    command = [sys.executable, "-m", "fbmem_assets.commands.main", "report", "--store", str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1), done.stderr
    assert done.stdout.endswith("report.html\n")


def test_times_and_what_json_has_no_type_for_are_text(capsys):
    show(pl.DataFrame({"at": [datetime(2026, 1, 2, tzinfo=UTC)]}), "json")
    assert json.loads(capsys.readouterr().out) == [{"at": "2026-01-02T00:00:00+00:00"}]


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])  # click writes UTF-8 where ASCII is asked for
def test_a_terminal_that_lacks_a_letter_gets_its_number(tmp_path, encoding):
    store = drawn_store(tmp_path / "store")
    assert isinstance(store, Store)
    command = [
        sys.executable,
        "-m",
        "fbmem_assets.commands.main",
        "sql",
        "select '\u65e5\u672c' as word, label from findings limit 1",
    ]
    done = subprocess.run(
        [*command, "--store", str(tmp_path / "store")],
        capture_output=True,
        env={"PYTHONIOENCODING": encoding, "PATH": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith(b"\\u65e5\\u672c")


def test_a_moved_store_answers(tmp_path, fbmem):
    drawn_store(tmp_path / "store")
    (tmp_path / "store").rename(tmp_path / "moved")
    run = fbmem("sql", "select count(*) as n from findings", "--store", tmp_path / "moved")
    assert run.stdout == "n\n12\n"
    assert KEY in fbmem("sql", "select checkpoint from audits", "--store", tmp_path / "moved").stdout


def test_a_store_that_is_a_file_and_a_relative_dagster_home_end_in_one_line(tmp_path, fbmem, monkeypatch, tiny_audit):
    (tmp_path / "file").write_text("x")
    run = fbmem("register", tiny_audit, "--store", tmp_path / "file")
    assert (run.exit_code, run.stderr.count("\n")) == (2, 1)
    from fbmem_assets.commands.instance import open_instance
    from fbmem_core.errors import InputError

    monkeypatch.setenv("DAGSTER_HOME", "dagster_home")
    with pytest.raises(InputError, match="DAGSTER_HOME to be the absolute path of a folder, but got `dagster_home`"):
        open_instance(str(tmp_path / "store"))


def test_another_project_s_dagster_yaml_is_neither_used_nor_touched(tmp_path, fbmem, monkeypatch, tiny_audit):
    project = tmp_path / "project"
    project.mkdir()
    (project / "dagster.yaml").write_text("storage: {postgres: {postgres_url: {env: NOT_SET}}}\n")
    monkeypatch.chdir(project)
    run = fbmem("register", tiny_audit, "--store", tmp_path / "store")
    assert run.exit_code == 0, run.stderr
    assert [path.name for path in project.iterdir()] == ["dagster.yaml"]


def test_the_home_folder_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store("~/audits").root == tmp_path / "audits"


def test_a_terminal_that_does_not_know_its_width_shows_progress():
    import os
    import pty

    code = (
        "from fbmem_assets.orchestration.progress import Progress; import time\n"
        "bar = Progress('sampling', 3)\n"
        "for _ in range(3):\n    time.sleep(0.6); bar.advance()\n"
        "bar.close()"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", code])
    shown = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.waitpid(pid, 0)
    assert shown.count(b"sampling") >= 2
