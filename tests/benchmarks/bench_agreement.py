"""Does the engine find what brute force finds? Every pair of a set by both ways, compared.

`python -m tests.benchmarks.bench_agreement [GENERATIONS REFERENCES SIZE FLOOR]`. Brute force takes every pair through
every scale, with statistics that are computed once per image; a random sample of its pairs is compared with
`region_similarity`, which is other code and computes everything anew for each pair.
"""

import math
import sys
import time

import numpy as np
import torch

from fbmem_core.labels import TAU, PairSimilarity, label_generation
from fbmem_core.retrieval.image_sets import ImageSet
from fbmem_core.retrieval.neighbors import FLOOR, Neighbor, nearest_references, pair_similarities
from fbmem_core.similarity import REGIONS
from fbmem_core.similarity.regions import MEASURES, region_similarity
from tests.benchmarks.bench_similarity import pictures

TOP_K = 5
CLOSE = 1e-5
NUM_SAMPLED = 24  # pairs of brute force that `region_similarity` checks
Table = dict[str, torch.Tensor]  # by criterion: the similarity to every reference [..., n], NaN where undefined


def main(num_generations: int = 20, num_references: int = 60, size: int = 256, floor: float = FLOOR) -> None:
    """Print how many generations were compared by both ways and each difference that was found."""
    references = pictures(num_references, size, seed=1, prefix="r")
    generations = pictures(num_generations, size, seed=2, prefix="g", copied=references)
    for masking in MEASURES:
        started = time.perf_counter()
        found = dict(nearest_references(generations, references, masking=masking, floor=floor, top_k=TOP_K))
        by_engine, started = time.perf_counter() - started, time.perf_counter()
        tables = brute_force(generations, references, masking)
        by_force = time.perf_counter() - started
        num_neighbors, differences, largest = 0, [], 0.0
        for row, (generation, neighbors) in enumerate(found.items()):
            table = {region: values[row] for region, values in tables.items()}
            num_neighbors += len(neighbors)
            wrong, difference = compare(neighbors, table, references.ids, floor)
            differences += [f"{generation}: {what}" for what in wrong]
            largest = max(largest, difference)
        sampled = check(tables, generations, references, masking)
        print(
            f"agreement: {masking}, {num_generations} x {num_references} at {size} px, floor {floor}: {num_neighbors} "
            f"neighbors, {len(differences)} differences, largest {largest:.1e}; brute force is {sampled:.1e} from "
            f"region_similarity on {NUM_SAMPLED} pairs; engine {by_engine:.0f} s, brute force {by_force:.0f} s"
        )
        print("\n".join(differences), flush=True)


def brute_force(generations: ImageSet, references: ImageSet, masking: str) -> Table:
    """The similarity [g, n] of every generation to every reference: every pair, every scale."""
    every = [pairs for _, pairs in pair_similarities(generations, references, masking=masking)]  # type: ignore[arg-type]
    return {
        region: torch.tensor(
            [[math.nan if (v := getattr(pair, region)) is None else v for pair in pairs] for pairs in every]
        )
        for region in REGIONS
    }


def check(tables: Table, generations: ImageSet, references: ImageSet, masking: str) -> float:
    """The largest difference of some pairs from `region_similarity`, by any criterion."""
    rng = np.random.default_rng(0)
    rows, columns = (torch.tensor(rng.integers(len(images), size=NUM_SAMPLED)) for images in (generations, references))
    largest = 0.0
    for row, column in zip(rows.split(1), columns.split(1), strict=True):
        (x, alpha_x), (y, alpha_y) = generations.tensors(row), references.tensors(column)
        expected = region_similarity(x, y, alpha_x, alpha_y, masking=masking)  # type: ignore[arg-type]
        for region in REGIONS:
            difference = tables[region][row, column] - getattr(expected, region)
            largest = max(largest, float(difference.nan_to_num(0.0).abs()))
    return largest


def compare(neighbors: list[Neighbor], table: Table, names: tuple[str, ...], floor: float) -> tuple[list[str], float]:
    """What differs between the engine's neighbors and those of the whole table, and by how much similarities differ."""
    wrong: list[str] = []
    largest = 0.0
    for region in REGIONS:
        mine = [neighbor for neighbor in neighbors if neighbor.region == region]
        values = table[region].nan_to_num(-1.0)
        order = values.argsort(descending=True, stable=True).tolist()
        num = int((values >= (floor or TAU)).sum())
        expected = [names[column] for column in order[: max(num, TOP_K) if floor == 0 else num]]
        if [n.reference_id for n in mine][: len(expected)] != expected:
            wrong.append(f"{region}: expected {expected}, found {[n.reference_id for n in mine]}")
        of = dict(zip(names, table[region].tolist(), strict=True))
        differences = [abs(n.similarity - of[n.reference_id]) for n in mine]
        largest = max([largest, *differences])
        wrong += [f"{region}: a similarity is {d:.1e} away" for d in differences if d > CLOSE]
    labels = label(table, names, names), label(table, names, {n.reference_id for n in neighbors})
    return wrong + ([f"labels {labels}"] if labels[0] != labels[1] else []), largest


def label(table: Table, names: tuple[str, ...], chosen: object) -> list[str | None]:
    """The labels by the three rules of these references alone."""
    rows = zip(names, *(table[part].tolist() for part in REGIONS[:3]), strict=True)
    pairs = [PairSimilarity(*row) for row in rows if row[0] in chosen]  # type: ignore[operator]
    rules = ("paper", "released", "per_region")
    return [label_generation(pairs, foreground_fraction=0.3, rule=rule).label for rule in rules]  # type: ignore[arg-type]


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(*map(int, arguments[:3]), *map(float, arguments[3:]))
