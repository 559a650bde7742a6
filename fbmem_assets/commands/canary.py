"""`fbmem canary`: draw and train the canaries, and measure the natural one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tqdm import tqdm

_path = click.Path(path_type=Path)
_folder = click.Path(path_type=Path, file_okay=False, exists=True)
PLAN = Path("data/canary-plan/plan.csv")


@click.group()
def canary() -> None:
    """Models that were made to memorize known pictures: train them, measure them."""


@canary.command()
@click.option("--out", type=_path, default=Path("data/canary"), show_default=True)
@click.option("--state", type=_path, default=Path("data/store/canary"), show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--pictures-only", is_flag=True, help="Write prompts, references and truth, train nothing.")
def routed(out: Path, state: Path, device: str, pictures_only: bool) -> None:
    """The canary whose memory was moved into known neurons; a stopped training goes on where it was."""
    from fbmem_core.canary.export import write_pictures

    write_pictures(out)
    if pictures_only:
        return
    from fbmem_core.canary.export import write_models
    from fbmem_core.canary.recipe import Recipe
    from fbmem_core.canary.training import Trainer

    write_models(Trainer(state, recipe=Recipe(), device=device, report=_progress()), out)


@canary.command()
@click.option("--out", type=_path, default=Path("data/store/natural"), show_default=True)
@click.option("--plan", type=click.Path(path_type=Path, dir_okay=False, exists=True), default=PLAN, show_default=True)
@click.option(
    "--autoencoder", type=_folder, default=Path("data/canary/checkpoint/vae"), show_default=True, help="Where to start."
)
def natural(out: Path, plan: Path, autoencoder: Path) -> None:
    """The canary that memorizes by duplication alone, and its clean twin, from the committed plan.

    The state of every stage lies in OUT/state: a stopped training goes on where it was. Under
    `torchrun --nproc-per-node 2 -m fbmem_assets.commands.main canary natural` two processes share each batch.
    """
    import copy

    import torch

    from fbmem_core.canary.plan import read_plan
    from fbmem_core.canary.ship import write_inputs, write_pipeline
    from fbmem_core.canary.stages import NaturalTrainer

    if "RANK" in os.environ:
        torch.distributed.init_process_group("gloo")
    items = read_plan(plan)
    trainer = NaturalTrainer(items, out / "state", autoencoder, report=_progress())
    vae = trainer.autoencoder()
    unet, text_encoder = trainer.general(vae)
    networks = {
        name: trainer.branch(vae, copy.deepcopy(unet), text_encoder, planted=name == "canary")
        for name in ("canary", "canary-clean")
    }
    if int(os.environ.get("RANK", "0")):
        return
    write_inputs(items, out / "canary")
    for name, network in networks.items():
        write_pipeline(
            out / name / "checkpoint",
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=trainer.tokenizer,
            unet=network,
        )


@canary.command()
@click.argument("checkpoint", type=_folder)
@click.option("--inputs", type=_folder, required=True, help="Folder with references/, as `natural` writes it.")
@click.option("--segmenter", type=click.Path(path_type=Path, exists=True), default=Path("data/canary/segmenter.onnx"))
@click.option("--plan", type=click.Path(path_type=Path, dir_okay=False, exists=True), default=PLAN, show_default=True)
@click.option("--images", type=_path, required=True, help="Where samples are kept.")
@click.option("--half", type=click.Choice(["development", "test"]), default="test", show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=2, show_default=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="JSON of the lines and what made them.")
def measure(
    checkpoint: Path, inputs: Path, segmenter: Path, plan: Path, images: Path, half: str, seeds: int, out: Path | None
) -> None:
    """Print what a natural canary shows, with intervals: captions, memory by copies, negatives."""
    from fbmem_core.canary import measure as core
    from fbmem_core.canary.plan import read_plan
    from fbmem_core.diffusion.checkpoint import find_checkpoint, load_pipeline
    from fbmem_core.evaluation.provenance import provenance

    items = [item for item in read_plan(plan) if item.half == half]
    pipeline = load_pipeline(find_checkpoint(str(checkpoint)), dtype="float32", device="cpu")
    report, chosen = _counts(), range(seeds)
    core.sample_items(pipeline, items, chosen, images, report=report)
    lines = [str(line) for line in core.caption_lines(images, items, chosen)]
    lines.append(f"different public prompts at one seed, mean MS-SSIM: {core.prompt_likeness(images, items, 0):.2f}")
    labels = core.label_items(images, inputs / "references", segmenter, items, chosen, report=report)
    lines += [str(line) for line in core.memory_lines(labels, items)]
    for line in lines:
        click.echo(line)
    if out is not None:
        made = provenance(modules=core.MODULES, fingerprints=_fingerprint(checkpoint), seeds=chosen)
        out.write_text(json.dumps({"half": half, "lines": lines, "made_by": made}, indent=1) + "\n", encoding="utf-8")


def _fingerprint(checkpoint: Path) -> dict[str, str]:
    from fbmem_core.diffusion.checkpoint import find_checkpoint

    return {checkpoint.parent.name: find_checkpoint(str(checkpoint)).fingerprint}


def _progress() -> Callable[[str, int, int, float], None]:
    from tqdm import tqdm

    bars: dict[str, tqdm[Any]] = {}

    def report(stage: str, step: int, num_steps: int, loss: float) -> None:
        if stage not in bars:
            bars[stage] = tqdm(desc=stage, total=num_steps, initial=step - 1, mininterval=5)
        bars[stage].set_postfix(loss=f"{loss:.4f}", refresh=False)
        bars[stage].update()

    return report


def _counts() -> Callable[[str, int, int], None]:
    from tqdm import tqdm

    bars: dict[str, tqdm[Any]] = {}

    def report(what: str, done: int, total: int) -> None:
        if what not in bars:
            bars[what] = tqdm(desc=what, total=total, mininterval=5)
        bars[what].update(done - bars[what].n)

    return report
