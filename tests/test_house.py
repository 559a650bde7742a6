"""The house: one place for each thing."""

from fbmem_core.store.schemas.columns import CHECKPOINT, PROMPT_ID
from fbmem_core.store.schemas.table import TEXT, Column, Table


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
