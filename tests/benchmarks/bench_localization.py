"""NeMo's localisation: the plain sequence of tests against the engine, on canary prompts, in one run.

`python -m tests.benchmarks localization`. The plain version spends one pass of the U-Net at every seed for each test;
the released code spends two, of which one is thrown away: its procedure is timed on one prompt.
"""

import csv
import time
from pathlib import Path

import torch

from fbmem_core.diffusion.checkpoint import find_checkpoint
from fbmem_core.diffusion.loading import load_pipeline
from fbmem_core.diffusion.noise_difference import FirstStep, encode_prompts
from fbmem_core.diffusion.settings import Mode
from fbmem_core.neurons.layers import value_layers
from fbmem_core.neurons.localization import Localization, localize
from fbmem_core.neurons.statistics import ActivationStatistics, activation_statistics, calibrate_threshold
from tests.core.plain_nemo import PlainNemo

CANARY = Path(__file__).parents[2] / "data" / "canary"
SIZE = {"height": 64, "width": 64}
NUM_SEEDS = 10
SEED_MARGIN = 0.05
FAMILIES = ("clockwork_owl", "velvet_emperor", "zibble", "hotel_azul")
MODES: tuple[Mode, ...] = ("paper", "released")
ENGINES = {"engine": None, "seed_margin": SEED_MARGIN}


class ReleasedNemo(PlainNemo):
    """As the released code goes about it: a pass that is thrown away before each one that counts."""

    def differences(self, prompt, blocked):
        """The differences of the second pass."""
        super().differences(prompt, blocked)
        return super().differences(prompt, blocked)


class Setting:
    """What both are given: the canary, usual activations and the calibrated threshold of a mode."""

    def __init__(self, mode: Mode) -> None:
        self.pipeline = load_pipeline(find_checkpoint(str(CANARY / "checkpoint")), dtype="float32", device="cpu")
        non_memorized = (CANARY / "non_memorized_prompts.txt").read_text("utf-8").splitlines()[:100]
        with (CANARY / "prompts.csv").open(encoding="utf-8", newline="") as file:
            self.prompts = {row["prompt_id"]: row["prompt"] for row in csv.DictReader(file)}
        self.mode = mode
        self.usual = encode_prompts(self.pipeline, non_memorized, **SIZE)
        self.statistics = self.measured("released")
        self.step = FirstStep(self.pipeline, range(NUM_SEEDS), mode=mode, **SIZE)
        self.threshold = calibrate_threshold(self.step, (self.usual.rows(row) for row in range(30))).value

    def measured(self, layers) -> ActivationStatistics:
        """Usual activations of these layers."""
        return activation_statistics(self.pipeline, value_layers(self.pipeline, layers), [self.usual])

    def localize(self, prompt_id: str, **options) -> tuple[Localization, float]:
        """What the engine finds, and the seconds it takes."""
        started = time.perf_counter()
        condition = encode_prompts(self.pipeline, [self.prompts[prompt_id]], **SIZE)
        statistics = options.pop("statistics", self.statistics)
        found = localize(self.step, condition, statistics, threshold=self.threshold, **options)
        return found, time.perf_counter() - started

    def plain(self, prompt_id: str, kind=PlainNemo) -> tuple[list[list[int]], float]:
        """What the plain sequence finds, and the seconds it takes."""
        plain = kind(self.pipeline, mode=self.mode, num_seeds=NUM_SEEDS, **SIZE)
        usual = list(self.statistics.mean.values()), list(self.statistics.stddev.values())
        started = time.perf_counter()
        _, refined = plain.localize(self.prompts[prompt_id], usual, self.threshold)
        return refined, time.perf_counter() - started


def main() -> None:
    """Print seconds a prompt, the ratios, and whether the neurons are the same."""
    print(f"localization: {NUM_SEEDS} seeds, {torch.get_num_threads()} threads, seed_margin {SEED_MARGIN}")
    took: dict[str, float] = {}
    for mode in MODES:
        setting = Setting(mode)
        for family in FAMILIES:
            refined, seconds = setting.plain(f"{family}-0")
            took["plain"] = took.get("plain", 0.0) + seconds
            line = f"{mode} {family}: plain {seconds:.1f} s"
            for name, margin in ENGINES.items():
                found, taken = setting.localize(f"{family}-0", seed_margin=margin)
                took[name] = took.get(name, 0.0) + taken
                is_same = [sorted(found.refined.at(layer)) for layer in setting.statistics.layers] == refined
                line += (
                    f", {name} {taken:.1f} s ({seconds / taken:.1f} times, {'same' if is_same else 'OTHER'} neurons)"
                )
            print(f"{line}; {len(found.initial)} -> {len(found.refined)}", flush=True)
    for name in ENGINES:
        print(f"{name}: {took['plain'] / took[name]:.1f} times faster than the plain sequence")
    seconds = setting.plain(f"{FAMILIES[0]}-0", ReleasedNemo)[1]
    taken = setting.localize(f"{FAMILIES[0]}-0")[1]
    print(f"the released code's procedure, two passes a test, {FAMILIES[0]}: {seconds:.1f} s, engine {taken:.1f} s")


if __name__ == "__main__":
    main()
