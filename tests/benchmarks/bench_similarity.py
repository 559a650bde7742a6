"""Time per pair of the similarities, as ratios to pytorch-msssim on the same pairs in the same run."""

import time
from collections.abc import Callable

import torch

from fbmem_core.similarity.ms_ssim import ms_ssim, pyramid, pyramid_ms_ssim
from fbmem_core.similarity.regions import regional

NUM_PAIRS = 16
REPEATS = 3


def main() -> None:
    """Print a table for two sizes."""
    import pytorch_msssim

    print(f"similarity: {NUM_PAIRS} pairs a batch, best of {REPEATS}, {torch.get_num_threads()} threads")
    print(f"{'size':>5} {'what':<34} {'ms per pair':>12} {'x faster':>9}")
    for size in (176, 256):
        torch.manual_seed(0)
        x, y = torch.rand(2, NUM_PAIRS, 3, size, size)
        alpha = torch.zeros(NUM_PAIRS, 1, size, size)
        alpha[..., size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 1
        prepared = pyramid(y)
        cases: dict[str, Callable[[], object]] = {
            "pytorch-msssim, one pair at a time": lambda x=x, y=y: [
                pytorch_msssim.ms_ssim(x[i : i + 1], y[i : i + 1], data_range=1.0) for i in range(NUM_PAIRS)
            ],
            "ms_ssim, batched": lambda x=x, y=y: ms_ssim(x, y),
            "one image against pyramids": lambda x=x, p=prepared: pyramid_ms_ssim(pyramid(x[:1]), p),
            "composite, both regions": lambda x=x, y=y, a=alpha: regional(x, y, a, a, region="composite"),
            "masked, both regions": lambda x=x, y=y, a=alpha: regional(x, y, a, a, region="masked"),
        }
        baseline = 0.0
        for name, run in cases.items():
            seconds = min(_seconds(run) for _ in range(REPEATS))
            baseline = baseline or seconds
            print(f"{size:>5} {name:<34} {seconds / NUM_PAIRS * 1000:>12.2f} {baseline / seconds:>9.1f}")


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
