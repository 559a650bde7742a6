"""The command line, `fbmem`; `fbmem --help` lists its commands, one file each beside this one.

Exit status 0 done, 1 failed, 130 stopped; an error of fbmem's own is one line and the status of its class
(`fbmem_core.errors`, 2 for bad input). `fbmem audit` and `fbmem verify` have more of their own: docs/evidence.md.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import click

from fbmem_assets.commands.audit import DEFAULT_AUDIT, audit
from fbmem_assets.commands.canary import canary
from fbmem_assets.commands.instance import open_instance
from fbmem_assets.commands.mitigations import mitigations
from fbmem_assets.commands.neurons import deactivate, neurons
from fbmem_assets.commands.packs import fetch, pack
from fbmem_assets.commands.report import report
from fbmem_assets.commands.review import review
from fbmem_assets.commands.score import score
from fbmem_assets.commands.sql import sql
from fbmem_assets.commands.validate import validate
from fbmem_assets.commands.verify import reproduce, verify
from fbmem_assets.orchestration.resources import store_option
from fbmem_core.errors import FbmemError


class _Command(click.Group):
    """Shows every error of fbmem's own as one line."""

    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a letter shows its number
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except FbmemError as error:
            click.echo(f"fbmem: {error}", err=True)
            ctx.exit(error.exit_status)


# what other libraries say of their loading and retrying; whoever sets these variables hears it
_QUIET = ("HF_HUB_VERBOSITY", "TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY")
_file_argument = click.argument("file", type=click.Path(path_type=Path), default=DEFAULT_AUDIT)


@click.group(cls=_Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fbmem")
def main() -> None:
    """Find out what a text-to-image diffusion model has memorized."""
    for name in _QUIET:
        os.environ.setdefault(name, "error")


@main.command()
@_file_argument
@store_option
def register(file: Path, store: str) -> None:
    """Make the checkpoint of FILE a partition that the Dagster UI can audit, and print its key."""
    instance = open_instance(store)
    from fbmem_assets.orchestration.partitions import register_audit
    from fbmem_core.store.tables import Store

    click.echo(register_audit(file, Store(store), instance))


# one line each that `--help` never cuts
_SUMMARIES = {
    audit: "Audit a checkpoint, from prompts to the report.",
    report: "Write the report of an audit: one HTML file.",
    sql: "Ask the tables of a store in SQL.",
    verify: "Check hashes, labels and a sample of similarities.",
    reproduce: "Make one image of an audit again and compare it.",
    review: "Give verdicts on findings, in a browser or by CSV.",
    score: "Label folders of images; no model is needed.",
    validate: "Compare labels by people with fbmem's.",
    mitigations: "Print an audit's mitigations as Markdown.",
    neurons: "Write the neuron sets that an audit found.",
    deactivate: "Copy a model with value neurons switched off.",
    register: "Make a checkpoint a partition of the Dagster UI.",
    pack: "Write a published prompt set as an audit's files.",
    fetch: "Fetch the pictures that a pack lists.",
    canary: "Models that were made to memorize known pictures.",
}
for command, summary in _SUMMARIES.items():
    command.short_help = summary
    main.add_command(command)


if __name__ == "__main__":
    main()
