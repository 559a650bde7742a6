"""What it changes to search the value layers of the up blocks too: `layers: all` against `released`.

`python -m tests.benchmarks layers`, planted canary prompts of every kind.
"""

from tests.benchmarks.bench_localization import Setting

PROMPTS = ("clockwork_owl-0", "zibble-0", "hotel_azul-0", "brundle-0")


def main() -> None:
    """Print neurons before and after refinement, those in up blocks, and the similarity that is reached."""
    setting = Setting("paper")
    print(f"layers: threshold {setting.threshold:.3f}")
    for prompt_id in PROMPTS:
        for layers in ("released", "all"):
            found, seconds = setting.localize(prompt_id, statistics=setting.measured(layers))
            num_up = sum(layer.startswith("up_blocks") for layer, _ in found.refined)
            print(
                f"{prompt_id} {layers}: {len(found.initial)} -> {len(found.refined)} neurons, {num_up} in up blocks, "
                f"similarity {found.similarity:.3f} -> {found.refined_similarity:.3f}, {seconds:.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
