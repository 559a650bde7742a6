"""`fbmem pack` and `fbmem fetch`: published prompt sets, and the pictures behind their addresses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

_PACKS_DIR = Path("data/store/packs")


@click.command()
@click.argument("name", required=False)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder.  [default: data/store/packs/NAME]"
)
@click.option("--from", "source", type=click.Path(path_type=Path), help="A copy of the authors' file that you have.")
def pack(name: str | None, out: Path | None, source: Path | None) -> None:
    """Write the published prompt set NAME as prompts.csv and references.csv; without NAME, list the sets.

    A file whose licence does not let fbmem ship it is fetched from its authors' repository. Its hash is checked.
    """
    from fbmem_core.errors import InputError
    from fbmem_core.inputs.packs import PACKS, obtain_pack, write_pack

    if name is None:
        for item in PACKS.values():
            click.echo(f"{item.name:17} {item.num_prompts:6} {item.title}; licence {item.licence}")
        return
    if name not in PACKS:
        raise InputError(f"a pack ({', '.join(PACKS)})", f"`{name}`", cure="Choose one; `fbmem pack` lists them.")
    folder = out or _PACKS_DIR / name
    written = write_pack(PACKS[name], obtain_pack(PACKS[name], folder, source=source), folder)
    click.echo(
        f"{written.folder}: {written.num_prompts} prompts, {written.num_with_address} with an address of a picture, "
        f"{written.num_addresses} different addresses"
    )
    if written.num_addresses:
        click.echo(f"next:   fbmem fetch {written.folder}")
    click.echo(f"audit:  prompts: {written.folder}/prompts.csv   references: {written.folder}")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--threads", type=click.IntRange(1, 64), default=16, show_default=True, help="Pictures at once.")
@click.option(
    "--seconds", type=click.FloatRange(min=0.1), default=60.0, show_default=True, help="Most a picture takes."
)
@click.option("--megabytes", type=click.FloatRange(min=0.001), default=50.0, show_default=True, help="Most it holds.")
@click.option("--private", is_flag=True, help="Ask private addresses too, say a mirror in the house.")
def fetch(folder: Path, threads: int, seconds: float, megabytes: float, private: bool) -> None:
    """Fetch the pictures that FOLDER/references.csv lists; a stopped fetch goes on where it was.

    What came of each address stands in FOLDER/pictures/fetched.jsonl. Private addresses are not asked.
    """
    from tqdm import tqdm

    from fbmem_core.inputs.fetching import FetchLimits
    from fbmem_core.inputs.packs import fetch_pack

    limits = FetchLimits(
        timeout=min(10.0, seconds), deadline=seconds, max_bytes=int(megabytes * 1e6), num_threads=threads,
        allow_private=private,
    )  # fmt: skip
    with tqdm(desc="fetching", unit="", mininterval=1.0) as bar:
        availability = fetch_pack(folder, limits, report=lambda outcome: _step(bar))
    for status, count in sorted(availability.statuses.items(), key=lambda item: -item[1]):
        click.echo(f"{count:7} {status}")
    if availability.num_prompts:
        missing = availability.num_prompts - availability.num_with_picture
        click.echo(f"{missing} of {availability.num_prompts} prompts have no picture")


def _step(bar: Any) -> None:
    bar.update()
