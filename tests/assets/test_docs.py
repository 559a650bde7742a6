"""What the documents show is true: commands run, examples pass, tables are the schemas."""

import re
import shlex

import pytest

from fbmem_core.store.schemas import TABLES
from fbmem_core.store.views import VIEWS
from tests.assets.conftest import PROJECT

README = (PROJECT / "README.md").read_text("utf-8")
COMMANDS = re.findall(r"^\$ (.+)$", README, flags=re.MULTILINE)


def test_the_readme_shows_the_commands_that_these_tests_run():
    assert {command.split()[0] for command in COMMANDS} == {"make", "fbmem", "source"}
    assert len([command for command in COMMANDS if command.startswith("fbmem sql")]) >= 3


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("fbmem sql")])
def test_the_queries_of_the_readme_answer(command, audited, fbmem):
    run = fbmem(*shlex.split(command)[1:], "--store", audited[0])
    assert run.exit_code == 0, run.stderr
    assert run.stdout.strip()


def test_the_audit_command_of_the_readme_has_the_form_that_was_run(audited):
    assert "fbmem audit my-audit.yaml" in COMMANDS
    assert audited[2].exit_code == 0


def test_the_label_table_of_the_readme_is_what_an_audit_prints(audited):
    [table] = re.findall(r"```text\n(.+?)```", README, flags=re.DOTALL)
    assert len(table.splitlines()) == 6
    assert table in audited[2].stdout


def test_the_readme_goes_from_a_result_to_reasons():
    headings = re.findall(r"^## (.+)$", README, flags=re.MULTILINE)
    assert headings == [
        "Install", "Audit your own model", "Score your own folders",
        "Switch the memory off, and see whether it is gone", "In Python", "Which models, and what NM means", "Cite",
        "Why not the authors' scripts", "More",
    ]  # fmt: skip
    assert README.index("![") < README.index("```text") < README.index("## Install")


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make")])
def test_the_make_targets_of_the_readme_exist(command):
    targets = re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text("utf-8"), flags=re.MULTILINE)
    assert command.split()[1] in targets


def test_the_audit_file_of_the_readme_is_valid(tmp_path, tiny_checkpoint):
    from fbmem_core.audit.file import load_audit

    text = "".join(re.findall(r"```yaml\n(.+?)```", README, flags=re.DOTALL))  # the sections add to the first file
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "my-model").symlink_to(tiny_checkpoint)
    folder = tmp_path / "audits"
    (folder / "training-images").mkdir(parents=True)
    (folder / "held-out").mkdir()
    (folder / "prompts.csv").write_text("prompt\na cat\n", "utf-8")
    (folder / "my-audit.yaml").write_text(text, "utf-8")
    audit = load_audit(folder / "my-audit.yaml")
    assert audit.name == "my-model"
    assert len(audit.mitigations.methods) == 6


@pytest.mark.parametrize("name", ["README.md", "docs/neurons.md", "docs/mitigations.md"])
def test_the_library_examples_run(name, monkeypatch):
    monkeypatch.chdir(PROJECT)
    [code] = re.findall(r"```python\n(.+?)```", (PROJECT / name).read_text("utf-8"), flags=re.DOTALL)
    exec(compile(code, name, "exec"), {})


def test_the_neuron_commands_of_the_documents_run(audited, fbmem, monkeypatch, tmp_path):
    lines = README + (PROJECT / "docs" / "neurons.md").read_text("utf-8")
    commands = dict.fromkeys(re.findall(r"^\$ fbmem ((?:neurons|deactivate) .+)$", lines, flags=re.MULTILINE))
    assert len(commands) == 4
    (tmp_path / "data").symlink_to(PROJECT / "data")
    monkeypatch.chdir(tmp_path)
    for command in commands:
        store = ["--store", audited[0]] if command.startswith("neurons") else []
        run = fbmem(*shlex.split(command), *store)
        assert run.exit_code == 0, run.stderr


def test_the_documented_tables_are_the_schemas():
    text = (PROJECT / "docs" / "tables.md").read_text("utf-8")
    introduction, *sections = text.split("\n## ")
    parts = [*VIEWS.values(), *TABLES.values()]
    assert [f"## {section}".strip() for section in sections] == [part.markdown() for part in parts]
    assert introduction.startswith("# Tables")


def test_every_key_of_the_audit_file_is_documented():
    from fbmem_core.audit.config import Audit

    text = (PROJECT / "docs" / "audit-file.md").read_text("utf-8")
    for name, field in Audit.model_fields.items():
        section = getattr(field.annotation, "model_fields", None)
        for key in section or [name]:
            assert f"`{name}`" in text if section is None else f"`{name}.{key}`" in text or f"`.{key}`" in text


def test_the_example_of_a_finished_audit_runs(audited, monkeypatch, tmp_path, capsys):
    [code] = re.findall(r"```python\n(.+?)```", (PROJECT / "docs" / "python.md").read_text("utf-8"), flags=re.DOTALL)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "store").symlink_to(audited[0])
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/python.md", "exec"), {})
    shown = capsys.readouterr().out
    assert "StableDiffusionPipeline" in shown
    assert "clockwork_owl-0 masked clockwork_owl" in shown


def test_every_page_that_a_document_links_to_is_there():
    for page in [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *(PROJECT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


QUESTIONS = (PROJECT / "docs" / "questions.md").read_text("utf-8").split("\n## ")[1:]


def test_there_are_fifteen_questions():
    assert [section.split(".")[0] for section in QUESTIONS] == [str(number) for number in range(1, 16)]


@pytest.mark.parametrize("section", QUESTIONS, ids=[section.splitlines()[0] for section in QUESTIONS])
def test_a_question_is_answered_as_the_text_beside_it_says(section, audited, fbmem):
    sql = re.search(r"```sql\n(.+?)\n```", section, flags=re.DOTALL).group(1)
    run = fbmem("sql", sql, "--store", audited[0], "--format", "markdown")
    assert run.exit_code == 0, run.stderr
    shown = [line for line in section.splitlines() if line.startswith("|")]
    if shown:
        assert run.stdout.splitlines() == shown
    if "No row" in section:
        assert len(run.stdout.splitlines()) == 2
