"""Does the engine find what brute force finds? Every pair of a set by both ways, compared.

`python -m tests.benchmarks.bench_agreement [GENERATIONS REFERENCES SIZE FLOOR]`; large sets take an hour and more.
"""

import sys
import time

import torch

from fbmem_core.audit import CRITERIA, TAU
from fbmem_core.image_sets import ImageSet
from fbmem_core.labels import PairSimilarity, label_generation
from fbmem_core.neighbors import FLOOR, Neighbor, nearest_references
from fbmem_core.similarity.regions import MEASURES, region_similarity
from tests.benchmarks.bench_similarity import pictures

TOP_K = 5
CLOSE = 1e-5
_BATCH = 8
Table = dict[str, torch.Tensor]  # by criterion: the similarity to every reference [n], NaN where undefined


def main(num_generations: int = 20, num_references: int = 60, size: int = 256, floor: float = FLOOR) -> None:
    """Print how many generations were compared by both ways and each difference that was found."""
    references = pictures(num_references, size, seed=1, prefix="r")
    generations = pictures(num_generations, size, seed=2, prefix="g", copied=references)
    for region in MEASURES:
        started = time.perf_counter()
        found = nearest_references(generations, references, region=region, floor=floor, top_k=TOP_K)
        num_neighbors, differences, largest = 0, [], 0.0
        for row, (generation, neighbors) in enumerate(found):
            table = brute_force(generations, references, row, region)
            num_neighbors += len(neighbors)
            wrong, difference = compare(neighbors, table, references.ids, floor)
            differences += [f"{generation}: {what}" for what in wrong]
            largest = max(largest, difference)
        took = time.perf_counter() - started
        what = f"agreement: {region}, {num_generations} x {num_references} at {size} px, floor {floor}"
        print(f"{what}: {num_neighbors} neighbors, {len(differences)} differences, largest {largest:.1e}; {took:.0f} s")
        print("\n".join(differences), flush=True)


def brute_force(generations: ImageSet, references: ImageSet, row: int, region: str) -> Table:
    """The similarity of one generation to every reference, by `region_similarity` alone."""
    x, alpha_x = generations.tensors(torch.tensor([row]))
    parts: dict[str, list[torch.Tensor]] = {criterion: [] for criterion in CRITERIA}
    for columns in torch.arange(len(references)).split(_BATCH):
        y, alpha_y = references.tensors(columns)
        similarity = region_similarity(
            x.expand_as(y).contiguous(), y, alpha_x.expand_as(alpha_y).contiguous(), alpha_y, region=region  # type: ignore[arg-type]
        )  # fmt: skip
        for criterion in CRITERIA:
            parts[criterion].append(getattr(similarity, criterion))
    return {criterion: torch.cat(values) for criterion, values in parts.items()}


def compare(neighbors: list[Neighbor], table: Table, names: tuple[str, ...], floor: float) -> tuple[list[str], float]:
    """What differs between the engine's neighbors and those of the whole table, and by how much similarities differ."""
    wrong, largest = [], 0.0
    for criterion in CRITERIA:
        mine = [neighbor for neighbor in neighbors if neighbor.criterion == criterion]
        values = table[criterion].nan_to_num(-1.0)
        order = values.argsort(descending=True, stable=True).tolist()
        num = int((values >= (floor or TAU)).sum())
        expected = [names[column] for column in order[: max(num, TOP_K) if floor == 0 else num]]
        if [n.reference_id for n in mine][: len(expected)] != expected:
            wrong.append(f"{criterion}: expected {expected}, found {[n.reference_id for n in mine]}")
        of = dict(zip(names, table[criterion].tolist(), strict=True))
        differences = [abs(n.similarity - of[n.reference_id]) for n in mine]
        largest = max([largest, *differences])
        wrong += [f"{criterion}: a similarity is {d:.1e} away" for d in differences if d > CLOSE]
    labels = label(table, names, names), label(table, names, {n.reference_id for n in neighbors})
    return wrong + ([f"labels {labels}"] if labels[0] != labels[1] else []), largest


def label(table: Table, names: tuple[str, ...], chosen: object) -> list[str | None]:
    """The labels by the three rules of these references alone."""
    rows = zip(names, *(table[part].tolist() for part in CRITERIA[:3]), strict=True)
    pairs = [PairSimilarity(*row) for row in rows if row[0] in chosen]  # type: ignore[operator]
    rules = ("paper", "release", "regions")
    return [label_generation(pairs, foreground_fraction=0.3, rule=rule).label for rule in rules]  # type: ignore[arg-type]


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(*map(int, arguments[:3]), *map(float, arguments[3:]))
