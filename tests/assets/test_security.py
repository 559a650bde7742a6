"""What a stranger may write into prompts, names and files reaches no page, no query and no network as code."""

import html
import re

import pytest

from fbmem_assets.orchestration.tables import markdown_table
from tests.assets.conftest import PROJECT

PROGRAMS = ('subprocess.run(["git", ', "subprocess.run([*git, ", 'subprocess.run(["minisign')
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![x](http://example.org/track.png)",
    "a | b | c",
    "`code` ``` fence",
    "a\n\n# heading\n\n| new | row |",
    "&lt;b&gt; & more",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_prompt_is_shown_as_text_in_one_cell_of_the_ui(text):
    shown = markdown_table([{"prompt_id": 1, "prompt": text}]).md_str
    assert len(shown.splitlines()) == 3
    row = shown.splitlines()[2]
    assert row.count("|") == 3
    cell = row.split("|")[2].strip()
    assert not re.search(r"[<>`\[]", cell)
    assert html.unescape(cell) == " ".join(text.split())


def test_the_ui_listens_to_this_machine_alone():
    commands = re.findall(r"\$\(BIN\)/dagster .*", (PROJECT / "Makefile").read_text("utf-8"))
    assert commands
    assert all("--host 127.0.0.1" in command for command in commands)


def test_nothing_of_the_package_starts_a_shell_or_opens_a_pickle():
    for package in ("fbmem_core", "fbmem_assets"):
        for path in sorted((PROJECT / package).rglob("*.py")):
            code = path.read_text("utf-8")
            calls = re.findall(r"os\.system|shell=True|pickle\.load|yaml\.load\(|(?<![\w.])eval\(", code)
            assert not calls, f"{path.name}: {calls}"
            # git says which commit made a result, minisign signs: their arguments are a list, which no shell reads
            calls = re.findall(r"subprocess\.\w+\(.{0,14}", code)
            assert all(call.startswith(PROGRAMS) for call in calls), f"{path.name}: {calls}"
            for call in re.findall(r"torch\.load\(.*?\)", code, flags=re.DOTALL):
                assert "weights_only=True" in call, f"{path.name}: {call}"
