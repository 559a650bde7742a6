"""`fbmem verify`: whether an audit still is what it was; `fbmem reproduce`: one of its images made again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fbmem_assets.orchestration.resources import store_option
from fbmem_core.errors import InputError

if TYPE_CHECKING:
    from fbmem_core.audit.config import Audit
    from fbmem_core.audit.results import AuditedCheckpoint
    from fbmem_core.report.verification import Difference
    from fbmem_core.store.tables import Store

_DIFFERS = 3
_SAME_PIXELS = 1  # of 255: kernels sum in another order for another batch


@click.command()
@click.argument("what", type=click.Path(path_type=Path, exists=True))
@click.option("--partition", help="Of which audited checkpoint; all by default.")
@click.option("--sample", type=click.IntRange(0), default=20, show_default=True, help="Images compared anew.")
@click.option("--public-key", type=click.Path(path_type=Path, dir_okay=False), help="Of minisign: check the signature.")
def verify(what: Path, partition: str | None, sample: int, public_key: Path | None) -> None:
    """Check the store, or the report, WHAT: every hash, settings, labels, and the similarities of a sample.

    Status 0: nothing differs; 3: something does, one line each. What is not there is said and does not count.
    """
    from fbmem_core.store.manifest import MANIFEST, check_signature
    from fbmem_core.store.tables import Store

    if what.is_file() or (what / MANIFEST).is_file():
        _verify_report(what if what.is_dir() else what.parent, public_key)
        return
    store = Store(what)
    keys = [partition] if partition else store.partitions("audit_settings")
    if not keys:
        raise InputError("an audited checkpoint", "none", where=store.root, cure="Run `fbmem audit` first.")
    differences: list[Difference] = []
    for key in keys:
        if public_key is not None:
            check_signature(store.root / "reports" / key / MANIFEST, public_key)
        differences += _verify(store, key, sample)
    _end(differences, ", ".join(keys))


def _verify(store: Store, key: str, sample: int) -> list[Difference]:
    from fbmem_core.report.verification import verify_store

    differences = []
    for difference in verify_store(
        store,
        key,
        sample=sample,
        report=lambda step: click.echo(f"{key}: {step}", err=True),
    ):
        click.echo(f"{'not there' if difference.is_missing else 'differs'}: {difference.item}: {difference.reason}")
        differences.append(difference)
    return differences


def _verify_report(folder: Path, public_key: Path | None) -> None:
    from fbmem_core.report.verification import verify_manifest
    from fbmem_core.store.manifest import MANIFEST, check_signature
    from fbmem_core.store.tables import Store

    if public_key is not None:
        check_signature(folder / MANIFEST, public_key)
    store = Store(folder.parent.parent)
    has_store = (store.root / "tables").is_dir()
    differences = [d for d in verify_manifest(store, folder / MANIFEST) if has_store or "/" not in d.item]
    for difference in differences:
        click.echo(f"differs: {difference.item}: {difference.reason}")
    if not has_store:
        click.echo("the store is not there: only the files of the report were checked", err=True)
    _end(differences, str(folder))


def _end(differences: list[Difference], name: str) -> None:
    wrong = [difference for difference in differences if not difference.is_missing]
    num_missing = len(differences) - len(wrong)
    click.echo(
        f"{name}: {len(wrong)} differences" + (f", {num_missing} things that are not there" if num_missing else "")
    )
    if wrong:
        sys.exit(_DIFFERS)


@click.command()
@click.argument("image")
@click.option("--partition", help="Of which audited checkpoint; needed where the store holds several.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="PNG file to write the image to.")
@click.option("--print-only", is_flag=True, help="Say what makes it, and do not make it.")
@store_option
def reproduce(image: str, partition: str | None, out: Path | None, print_only: bool, store: str) -> None:
    """Make IMAGE (PROMPT_ID/SEED) of an audit again, and compare it with the one that was audited.

    Status 0: equal, but for at most 1 of 255 at any pixel, as another size of batch gives; 3: it differs.
    """
    from fbmem_core.audit.config import Audit
    from fbmem_core.audit.results import open_audit
    from fbmem_core.store.tables import Store

    audit = open_audit(Store(store), partition)
    frozen = audit.read("audit_settings")["settings"].to_list()
    if not frozen:
        raise InputError("a labelled audit", "none", where=audit.partition, cure="Run `fbmem audit` first.")
    config = Audit.model_validate_json(frozen[0])
    prompt_id, _, seed = image.removeprefix("none/").rpartition("/")
    rows = audit.read("generations", shard="none").filter(prompt_id=prompt_id, seed=int(seed) if seed.isdigit() else -1)
    if rows.is_empty():
        raise InputError("an image of the audit (PROMPT_ID/SEED)", f"`{image}`", cure="See `path` in findings.")
    row = rows.row(0, named=True)
    sampling, prompt = config.sampling, audit.prompts[prompt_id]
    facts = {
        "model": f"{audit.checkpoint.source} (fingerprint {audit.checkpoint.fingerprint})", "prompt": prompt,
        "seed": row["seed"], "steps": sampling.steps, "guidance_scale": sampling.guidance_scale,
        "size": f"{sampling.width}x{sampling.height}", "dtype": sampling.dtype, "device": sampling.device,
        "audited": f"{row['path']} (sha256 {row['sha256']})",
    }  # fmt: skip
    for name, value in facts.items():
        click.echo(f"{name + ':':16}{value}")
    if not print_only:
        _make_again(audit, config, prompt, row, out)


def _make_again(audit: AuditedCheckpoint, config: Audit, prompt: str, row: dict[str, Any], out: Path | None) -> None:
    import numpy as np

    from fbmem_core.diffusion.sampling import Request, sample
    from fbmem_core.store.images import open_image

    request = Request(row["prompt_id"], prompt, row["seed"])
    [(_, made)] = sample(audit.pipeline, [request], config.sampling)
    if out is not None:
        made.save(out)
        click.echo(f"{'written:':16}{out}")
    kept = np.asarray(open_image(audit.store, row["path"]).convert("RGB"), dtype=np.int16)
    farthest = int(np.abs(np.asarray(made.convert("RGB"), dtype=np.int16) - kept).max())
    is_same = farthest <= _SAME_PIXELS
    click.echo(f"{'compared:':16}{'the same image' if is_same else 'another image'}, at most {farthest} of 255 apart")
    if not is_same:
        sys.exit(_DIFFERS)
