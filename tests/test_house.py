"""The house: plain names, docstrings that open with a noun or a verb, one place for each thing."""

import ast
from pathlib import Path

import pytest

from fbmem_core.store.schemas.columns import CHECKPOINT, PROMPT_ID
from fbmem_core.store.schemas.table import TEXT, Column, Table

PROJECT = Path(__file__).parents[1]
MODULES = [path for package in ("fbmem_core", "fbmem_assets") for path in sorted((PROJECT / package).rglob("*.py"))]
VAGUE = {
    "found", "some", "known", "wanted", "asked", "of", "which", "every", "other", "lost", "strange", "odd", "only",
}  # fmt: skip
CLAUSES = {"What", "How", "Those", "By", "Of", "Whether"}


def names_bound_in(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_names_say_what_they_hold_and_docstrings_open_with_a_noun_or_a_verb(path):
    tree = ast.parse(path.read_text("utf-8"))
    assert [(name, line) for name, line in names_bound_in(tree) if name in VAGUE] == []
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    texts = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented)]
    assert [text.splitlines()[0] for text in texts if text and text.split()[0].strip(",:") in CLAUSES] == []


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
