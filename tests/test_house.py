"""The house: one place for each thing, and the words of its code."""

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import fbmem_assets
import fbmem_core
from fbmem_assets.commands.main import main
from fbmem_core.errors import FbmemError
from fbmem_core.store.schemas.columns import CHECKPOINT, PROMPT_ID
from fbmem_core.store.schemas.table import TEXT, Column, Table

VAGUE = frozenset(
    {"found", "some", "known", "wanted", "asked", "of", "which", "every", "other", "others", "lost", "odd", "only"}
    | {"strange", "alike", "that", "those", "these"}
)
NO_OPENINGS = (
    {"what", "how", "whether", "which", "where", "when", "if", "as", "that", "this", "those", "these", "it", "its"}
    | {"by", "of", "for", "from", "in", "on", "at", "with", "to", "only", "every", "some", "other", "others"}
)  # fmt: skip
ROOTS = [Path(str(package.__file__)).parent for package in (fbmem_core, fbmem_assets)]
FILES = sorted(path for root in ROOTS for path in root.rglob("*.py"))


def bound_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of whatever a module binds: variables, loop targets, arguments, attributes of self, aliases."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            yield node.lineno, node.name
        elif isinstance(node, ast.alias) and node.asname:
            yield node.lineno, node.asname


def vague_names(source: str) -> list[tuple[int, str]]:
    return [(line, name) for line, name in bound_names(ast.parse(source)) if name.strip("_") in VAGUE]


def vague_docstrings(source: str) -> list[tuple[int, str]]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    openings = [
        (getattr(node, "lineno", 1), text.split()[0].strip(".,:;`*").lower())
        for node in ast.walk(ast.parse(source))
        if isinstance(node, documented) and (text := ast.get_docstring(node))
    ]
    return [(line, word) for line, word in openings if word in NO_OPENINGS]


BAD = '''
"""What stands here."""
from os import path as other
def f(some, *, wanted):
    """By which it is."""
    for odd, line in some:
        found: int = 1
        self.known = [which for which in (_every := wanted)]
    with open(some) as (lost, rest):
        return lambda only: only
'''


def test_the_checks_of_words_see_all_that_binds():
    names = {name for _, name in vague_names(BAD)}
    assert names == {"other", "some", "wanted", "odd", "found", "known", "which", "_every", "lost", "only"}
    assert vague_docstrings(BAD) == [(1, "what"), (4, "by")]
    assert vague_names("neighbors = [image for image in images]") == []
    assert vague_docstrings('"""Images of a prompt, in which order they came."""') == []


@pytest.mark.parametrize("check", [vague_names, vague_docstrings])
def test_names_are_nouns_and_docstrings_open_with_a_noun_or_a_verb(check):
    assert [f"{path}:{line} {word}" for path in FILES for line, word in check(path.read_text("utf-8"))] == []


def test_a_new_column_is_one_entry():
    table = Table(
        "notes", "One row per prompt.", key=("checkpoint", "prompt_id"),
        columns=(CHECKPOINT, PROMPT_ID, Column("note", TEXT, "written by hand")),
    )  # fmt: skip
    assert table.schema.names == ["checkpoint", "prompt_id", "note"]
    assert table.descriptions["note"] == "written by hand"
    assert "| note | string | written by hand |" in table.markdown()


def test_no_reserved_word_of_sql_is_a_column():
    import duckdb

    from fbmem_core.store.schemas import TABLES

    rows = duckdb.sql("select keyword_name from duckdb_keywords() where keyword_category = 'reserved'").fetchall()
    reserved = {name for (name,) in rows}
    assert {(name, column) for name, table in TABLES.items() for column in table.columns if column in reserved} == set()


def test_a_new_mitigation_is_one_file_with_typed_options(tmp_path, monkeypatch):
    from fbmem_core.audit.config import MitigationsConfig
    from fbmem_core.mitigation import METHODS

    guide = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text("utf-8")
    [code] = [part for part in re.findall(r"```python\n(.+?)```", guide, flags=re.DOTALL) if "class Loudest(" in part]
    (tmp_path / "loudest.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)

    def config(**options):
        return MitigationsConfig(methods=["random", {"method": "loudest:Loudest", "options": options}])

    assert config(num=3).trials()[1].options["num"] == 3
    assert METHODS["loudest:Loudest"].options_type(num=3).num == 3
    with pytest.raises(ValueError, match="num"):
        config(num="many")
    with pytest.raises(ValueError, match="volume"):
        config(volume=1)


def test_a_command_ends_with_the_exit_status_of_its_error():
    class BusyError(FbmemError):
        exit_status = 9

    def fail():
        raise BusyError("Expected a free store, but got a busy one.")

    commands = type(main)("fbmem", commands={"fail": click.Command("fail", callback=fail)})
    result = CliRunner().invoke(commands, ["fail"])
    assert (result.exit_code, result.stderr) == (9, "fbmem: Expected a free store, but got a busy one.\n")
    assert FbmemError.exit_statuses()["BusyError"] == 9
    assert FbmemError.exit_statuses()["InputError"] == 2


def exported_functions():
    packages = [fbmem_core, import_module("fbmem_core.retrieval.descriptors")]
    things = {f"{package.__name__}.{name}": getattr(package, name) for package in packages for name in package.__all__}
    return {name: thing for name, thing in things.items() if inspect.isfunction(inspect.unwrap(thing))}


def test_exported_functions_explain_their_arguments():
    several = [name for name, thing in exported_functions().items() if len(inspect.signature(thing).parameters) > 1]
    assert "fbmem_core.region_similarity" in several
    assert [name for name in several if "Args:" not in (exported_functions()[name].__doc__ or "")] == []


def test_what_the_package_exports_has_an_example():
    docs = {name: inspect.getdoc(getattr(fbmem_core, name)) or "" for name in fbmem_core.__all__}
    assert [name for name, text in docs.items() if ">>>" not in text] == []
