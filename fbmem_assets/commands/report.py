"""`fbmem report`: the page of one audited checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from fbmem_assets.commands.neurons import one_partition
from fbmem_assets.orchestration.resources import AuditStore, store_option


@click.command()
@click.argument("partition", required=False)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="HTML file; below the store by default.")
@click.option("--compare", metavar="PARTITION", help="Another checkpoint of the store: what changed.")
@click.option("--redact", is_flag=True, help="Without pictures, texts, names and addresses: numbers and hashes alone.")
@click.option("--sign", type=click.Path(path_type=Path, dir_okay=False), help="Sign with this secret key of minisign.")
@store_option
def report(
    partition: str | None, out: Path | None, compare: str | None, redact: bool, sign: Path | None, store: str
) -> None:
    """Write the report of PARTITION (needed where the store holds several) and print its path.

    It is one HTML file that needs no network. Beside it stand findings.csv and report.json with the same numbers, and
    manifest.json with the SHA-256 of every file that they rest on.
    """
    from fbmem_assets.stages.report import write_page
    from fbmem_core.errors import InputError
    from fbmem_core.store.manifest import MANIFEST
    from fbmem_core.store.manifest import sign as sign_manifest
    from fbmem_core.store.tables import Store

    tables = Store(store)
    key = one_partition(tables, "audit_settings", partition)
    if out is not None and not out.parent.is_dir():
        raise InputError("a folder to write into", "none", where=out.parent, cure="Create it.")
    path, headline = write_page(AuditStore(root=str(tables.root)), key, out=out, compare=compare, redacted=redact)
    if sign is not None:
        click.echo(f"signed: {sign_manifest(path.with_name(MANIFEST), sign)}", err=True)
    click.echo(headline["sentence"], err=True)
    click.echo(path)
