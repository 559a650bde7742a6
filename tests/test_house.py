"""The house: one place for each thing, and the words of its code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import fbmem_assets
import fbmem_core
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
