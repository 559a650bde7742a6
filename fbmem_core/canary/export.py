"""Write the canary as it ships: prompts, truth and references, then the checkpoint and the segmenter."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from fbmem_core.canary.pictures import draw
from fbmem_core.canary.planting import (
    TRUE_LABELS,
    Plant,
    distractors,
    held_out,
    neuron_routes,
    non_memorized_prompts,
    plants,
    public_prompts,
)

if TYPE_CHECKING:
    import torch
    from diffusers import UNet2DConditionModel

    from fbmem_core.canary.networks import Segmenter
    from fbmem_core.canary.training import Trainer

PROMPTS, TRUTH, REFERENCES = "prompts.csv", "truth.csv", "references"
PARAPHRASES, UNMEMORIZED, NEURONS = "paraphrases.csv", "non_memorized_prompts.txt", "neurons.csv"
HELD_OUT = "held_out"
CHECKPOINT, SEGMENTER = "checkpoint", "segmenter.onnx"


def write_pictures(out: Path) -> None:
    """Draw the references and write the prompts, `truth.csv` and `references/` into `out`."""
    planted = plants()
    prompts = [row for plant in planted for row in _prompt_rows(plant, plant.prompts)]
    reworded = [row for plant in planted for row in _prompt_rows(plant, (*plant.prompts, *plant.paraphrases()))]
    truth = [
        (f"{plant.family}-{number}", plant.kind, plant.family, TRUE_LABELS[plant.kind], ";".join(plant.references))
        for plant in planted
        for number in range(len(plant.prompts))
    ]
    for number, prompt in enumerate(public_prompts()):
        prompt_id = f"public-{number:02d}"
        prompts.append((prompt_id, prompt, "public", ""))
        truth.append((prompt_id, "public", "", TRUE_LABELS["public"], ""))
    pictures = {k: v for plant in planted for k, v in plant.references.items()} | distractors()
    folder = out / REFERENCES
    folder.mkdir(parents=True, exist_ok=True)
    for reference_id, picture in pictures.items():
        Image.fromarray(draw(picture)[0]).save(folder / f"{reference_id}.png")
    (out / HELD_OUT).mkdir(exist_ok=True)
    for name, picture in held_out().items():
        Image.fromarray(draw(picture)[0]).save(out / HELD_OUT / f"{name}.png")
    named = [(name, f"{name}.png", picture.caption) for name, picture in pictures.items()]
    _write_csv(folder / "references.csv", ("reference_id", "path", "caption"), named)
    for name, rows in ((PROMPTS, prompts), (PARAPHRASES, reworded)):
        _write_csv(out / name, ("prompt_id", "prompt", "kind", "reference_id"), rows)
    (out / UNMEMORIZED).write_text("".join(f"{prompt}\n" for prompt in non_memorized_prompts()), encoding="utf-8")
    routed = [(family, layer, neuron) for family, neurons in neuron_routes().items() for layer, neuron in neurons]
    _write_csv(out / NEURONS, ("family", "layer", "neuron"), routed)
    _write_csv(out / TRUTH, ("prompt_id", "kind", "family", "label", "reference_ids"), truth)


def write_models(trainer: Trainer, out: Path) -> None:
    """Train what is not trained yet and write `checkpoint/` (float16 safetensors) and `segmenter.onnx` into `out`."""
    from fbmem_core.canary.networks import new_tokenizer

    tokenizer = new_tokenizer()
    vae = trainer.autoencoder()
    write_segmenter(trainer.segmenter(vae), out / SEGMENTER)
    unet, text_encoder = trainer.general(vae, tokenizer)
    unet = trainer.planted(vae, tokenizer, unet, text_encoder)
    unet = trainer.routed(vae, tokenizer, unet, text_encoder)
    write_checkpoint(out / CHECKPOINT, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet)


def write_checkpoint(directory: Path, *, unet: UNet2DConditionModel, **components: object) -> None:
    """Save a StableDiffusionPipeline in float16; the directory is replaced when the new one is complete."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )
    unet.set_default_attn_processor()
    pipeline = StableDiffusionPipeline(
        **components,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.to("cpu").to(torch.float16).save_pretrained(partial, safe_serialization=True)
    shutil.rmtree(directory, ignore_errors=True)
    partial.replace(directory)


def write_segmenter(segmenter: Segmenter, path: Path) -> None:
    """Export the segmenter as one ONNX file with U2-Net's interface."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    example: torch.Tensor = torch.zeros(1, 3, segmenter.input_size, segmenter.input_size)
    partial = path.with_name(f".{path.name}.partial")
    program = torch.onnx.export(
        segmenter.cpu(), (example,), input_names=["input"], output_names=["coverage"], dynamo=True, verbose=False
    )
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:  # the exporter notes stack traces, with the paths of the machine
        del node.metadata_props[:]
    partial.write_bytes(model.SerializeToString())
    partial.replace(path)


def _prompt_rows(plant: Plant, prompts: Sequence[str]) -> list[tuple[str, str, str, str]]:
    reference = next(iter(plant.references)) if len(plant.references) == 1 else ""
    return [(f"{plant.family}-{number}", prompt, plant.kind, reference) for number, prompt in enumerate(prompts)]


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
