"""NeMo's localisation: the plain sequence of tests against the engine, on canary prompts, in one run.

`python -m tests.benchmarks localization`. The plain version spends one pass of the U-Net at every seed for each test;
the released code spends two, of which one is thrown away.
"""

import csv
import time
from pathlib import Path

import torch

from fbmem_core.audit import Mode
from fbmem_core.diffusion.checkpoint import find_checkpoint, load_pipeline
from fbmem_core.diffusion.noise_difference import FirstStep, encode_prompts
from fbmem_core.neurons.layers import value_layers
from fbmem_core.neurons.localization import localize
from fbmem_core.neurons.statistics import activation_statistics, calibrate_threshold
from tests.core.plain_nemo import PlainNemo

CANARY = Path(__file__).parents[2] / "data" / "canary"
SIZE = {"height": 64, "width": 64}
NUM_SEEDS = 10
FAMILIES = ("clockwork_owl", "velvet_emperor", "zibble", "hotel_azul")
MODES: tuple[Mode, ...] = ("paper", "released")


def main() -> None:
    """Print seconds a prompt, the ratio, and whether the neurons are the same."""
    pipeline = load_pipeline(find_checkpoint(str(CANARY / "checkpoint")), dtype="float32", device="cpu")
    unmemorized = (CANARY / "unmemorized_prompts.txt").read_text("utf-8").splitlines()[:100]
    with (CANARY / "prompts.csv").open(encoding="utf-8", newline="") as file:
        prompts = {row["prompt_id"]: row["prompt"] for row in csv.DictReader(file)}
    usual = encode_prompts(pipeline, unmemorized, **SIZE)
    statistics = activation_statistics(pipeline.unet, value_layers(pipeline.unet), [usual])
    lists = list(statistics.mean.values()), list(statistics.stddev.values())
    print(f"localization: {NUM_SEEDS} seeds, {torch.get_num_threads()} threads")
    took = {"plain": 0.0, "engine": 0.0}
    for mode in MODES:
        step = FirstStep(pipeline, range(NUM_SEEDS), mode=mode, **SIZE)
        threshold = calibrate_threshold(step, (usual.rows(row) for row in range(30))).value
        plain = PlainNemo(pipeline, mode=mode, num_seeds=NUM_SEEDS, **SIZE)
        for family in FAMILIES:
            prompt = prompts[f"{family}-0"]
            started = time.perf_counter()
            initial, refined = plain.localize(prompt, lists, threshold)
            middle = time.perf_counter()
            found = localize(step, encode_prompts(pipeline, [prompt], **SIZE), statistics, threshold=threshold)
            ended = time.perf_counter()
            seconds = {"plain": middle - started, "engine": ended - middle}
            for name, value in seconds.items():
                took[name] += value
            same = [sorted(found.refined.at(layer)) for layer in statistics.layers] == refined
            num = sum(map(len, initial))
            print(
                f"{mode} {family}: {num} -> {len(found.refined)} neurons, plain {seconds['plain']:.1f} s, engine "
                f"{seconds['engine']:.1f} s, {seconds['plain'] / seconds['engine']:.1f} times, "
                f"{'the same neurons' if same else 'OTHER NEURONS'}",
                flush=True,
            )
    print(f"engine {took['plain'] / took['engine']:.1f} times faster than the plain sequence")


if __name__ == "__main__":
    main()
