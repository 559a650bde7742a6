"""Store of everything that an audit produces: tables as Parquet, images as PNG, views in DuckDB."""
