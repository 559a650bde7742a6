"""What the shortcut `seed_margin` saves and changes: the engine with it against the engine without.

`python -m tests.benchmarks seed_margin`, twelve canary prompts in both modes.
"""

import torch

from tests.benchmarks.bench_localization import MODES, NUM_SEEDS, SEED_MARGIN, Setting
from tests.core.test_localization import ROUTED


def compare(mode) -> None:
    """Print seconds, their ratio, and which prompts end with other neurons, of one mode."""
    setting = Setting(mode)
    whole_seconds = near_seconds = 0.0
    others = []
    for prompt_id in ROUTED:
        whole, seconds = setting.localize(prompt_id)
        whole_seconds += seconds
        near, seconds = setting.localize(prompt_id, seed_margin=SEED_MARGIN)
        near_seconds += seconds
        if near.refined != whole.refined:
            others.append(f"{prompt_id} {len(near.refined)} instead of {len(whole.refined)}")
    sizes = f"{len(ROUTED)} prompts, {NUM_SEEDS} seeds, {torch.get_num_threads()} threads"
    print(f"seed_margin {SEED_MARGIN}, {mode}: {sizes}")
    print(f"  {near_seconds:.0f} s, every seed {whole_seconds:.0f} s, {whole_seconds / near_seconds:.1f} times")
    print(f"  other neurons: {', '.join(others) or 'none'}", flush=True)


def main() -> None:
    """Compare in both modes."""
    for mode in MODES:
        compare(mode)


if __name__ == "__main__":
    main()
