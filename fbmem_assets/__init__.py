"""The Dagster side of fbmem: each asset reads tables, calls one core function, writes a table and reports."""
