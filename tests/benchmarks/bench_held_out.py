"""What is left of the memory at seeds that no mitigation looked at, under the neurons that an audit switched off.

`fbmem audit data/audits/canary-mitigations.yaml`, then `python -m tests.benchmarks held_out`: of the store that
FBMEM_STORE names, `data/store` by default.
"""

import csv
import tempfile
from collections import Counter
from pathlib import Path

from fbmem_assets.orchestration.resources import store_root
from fbmem_core.audit.config import SamplingConfig, SimilarityConfig
from fbmem_core.diffusion.checkpoint import find_checkpoint
from fbmem_core.diffusion.loading import load_pipeline
from fbmem_core.diffusion.sampling import Request, sample
from fbmem_core.labels import SEVERITY
from fbmem_core.neurons.hooks import deactivation_factors, scale_neurons
from fbmem_core.neurons.layers import NO_NEURONS, named_sets
from fbmem_core.retrieval.label_images import score_folders
from fbmem_core.store.tables import Store
from tests.benchmarks.bench_localization import CANARY

SEEDS = range(10, 13)  # mitigations look at 0 to 9
METHODS = ("none", "random", "nemo", "nemo_c", "fade")
SAMPLING = SamplingConfig(steps=25, guidance_scale=3.0, height=64, width=64, device="cpu", batch_size=len(SEEDS))


def main() -> None:
    """Print the mean severity and the labels that each method leaves of the planted prompts."""
    tables = Store(store_root())
    keys = [key for key in tables.partitions("mitigated_neurons") if key.startswith("canary-mitigations")]
    if not keys:
        print(f"held_out: skipped, no audit of data/audits/canary-mitigations.yaml in {tables.root}")
        return
    rows = tables.read("mitigated_neurons", keys[-1]).select("method", "prompt_id", "layer", "neuron").rows()
    pipeline = load_pipeline(find_checkpoint(str(CANARY / "checkpoint")), dtype="float32", device="cpu")
    with (CANARY / "prompts.csv").open(encoding="utf-8", newline="") as file:
        prompts = {row["prompt_id"]: row["prompt"] for row in csv.DictReader(file) if row["kind"] != "public"}
    print(f"held_out: {len(prompts)} planted prompts, seeds {SEEDS[0]} to {SEEDS[-1]}")
    for method in METHODS:
        neurons = named_sets(row[1:] for row in rows if row[0] == method)
        with tempfile.TemporaryDirectory() as name:
            for prompt_id, prompt in prompts.items():
                factors = deactivation_factors(pipeline.unet, neurons.get(prompt_id, NO_NEURONS))
                with scale_neurons(pipeline.unet, factors):
                    for request, image in sample(pipeline, [Request(prompt_id, prompt, k) for k in SEEDS], SAMPLING):
                        image.save(Path(name) / f"{prompt_id}-{request.seed}.png")
            found = score_folders(
                Path(name), CANARY / "references", SimilarityConfig(size=176), segmenter=str(CANARY / "segmenter.onnx")
            )
        labels = found.labels["label"].to_list()
        severity = sum(SEVERITY[label] for label in labels) / len(labels)
        print(f"  {method}: severity {severity:.3f}, {dict(Counter(labels).most_common())}", flush=True)


if __name__ == "__main__":
    main()
