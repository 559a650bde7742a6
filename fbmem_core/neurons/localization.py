"""NeMo, arXiv 2406.02366: the value neurons without which a memorized prompt is no longer recognised.

Two stages, each a sequence of tests: are the noise differences with some neurons switched off still similar to those
with none switched off, at the same seed? The sequence is the specification. It is answered with fewer and shorter
passes of the network than one for each test: what comes before the first layer that differs is replayed, a pass asks
about several candidates at once, and a candidate is refused by a single seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from torch import Tensor

from fbmem_core.diffusion.conditioning import Conditioning
from fbmem_core.diffusion.noise_difference import FirstStep, pairwise_similarity
from fbmem_core.neurons import Search
from fbmem_core.neurons.blocked_similarity import BlockedSimilarity
from fbmem_core.neurons.layers import NO_NEURONS, NeuronSet
from fbmem_core.neurons.refinement import refine_in_groups
from fbmem_core.neurons.statistics import ActivationStatistics, activations

# NeMo, section 3.2: the search for the initial selection
MAX_Z_SCORE = 5.0
MIN_Z_SCORE = 1.0
Z_SCORE_STEP = 0.25
BATCH_SIZE = 16


@dataclass(frozen=True)
class Localization:
    """Result of the search for one prompt.

    Attributes:
        similarity: Highest similarity of two of its noise differences, nothing switched off.
        num_seeds: Seeds whose highest similarity exceeds the threshold; 0: the prompt is not memorized.
        initial: Neurons of the initial selection.
        refined: Those of them that are needed.
        initial_similarity: Highest similarity, switched off against not, with the initial neurons; None without any.
        refined_similarity: The same with the refined ones.
        threshold: At or below which it had to stay while the neurons were refined.
        is_reached: Whether the initial selection got to the similarity that was asked for.
        z_score_threshold: Of the initial selection.
        num_top_neurons: The neurons of highest activation that it took from each layer besides.
    """

    similarity: float
    num_seeds: int = 0
    initial: NeuronSet = NO_NEURONS
    refined: NeuronSet = NO_NEURONS
    initial_similarity: float | None = None
    refined_similarity: float | None = None
    threshold: float | None = None
    is_reached: bool | None = None
    z_score_threshold: float | None = None
    num_top_neurons: int | None = None


def localize(
    step: FirstStep,
    condition: Conditioning,
    statistics: ActivationStatistics,
    *,
    threshold: float,
    batch_size: int = BATCH_SIZE,
    seed_margin: float | None = None,
    search: Search = "groups",
) -> Localization:
    """Find the neurons behind one prompt.

    Args:
        step: The first step of sampling, for ten seeds in the paper.
        condition: The prompt.
        statistics: Of the layers that are searched, over non-memorized prompts.
        threshold: From which similarity on a prompt counts as memorized; see `calibrate_threshold`.
        batch_size: Samples in one pass of the network; half as many from then on where memory is too little for them.
        seed_margin: A shortcut, which may end with other neurons: while those of a layer are refined, seeds that were
            more than this below the allowed similarity are not asked. All are asked when the layer is done; if one
            exceeds it then, the layer is refined again without the shortcut. None: every seed is asked.
        search: `groups` drops neurons of a layer in groups, see `refinement`; `exact` is NeMo's sequence, one by one.
    """
    # 1. noise differences eps(x_T) - x_T of all seeds; a prompt is memorized where two of them are similar
    differences = step.noise_difference(condition)
    of_seed = pairwise_similarity(differences).amax(dim=1)
    seeds = (of_seed > threshold).nonzero()[:, 0]
    similarity = of_seed.max().item()
    if not len(seeds):
        return Localization(similarity)
    # 2. initial selection: theta falls and k grows, round by round, until switching the neurons off breaks it
    test = BlockedSimilarity(step, condition, seeds, differences[seeds], statistics.layers, batch_size)
    rounds = _rounds(step, condition, statistics)
    number, initial_similarity = _search(test, rounds, threshold)
    initial, is_reached = rounds[number], initial_similarity <= threshold
    # 3. refinement: what can be dropped without the similarity rising above what the selection reached
    allowed = threshold if is_reached else initial_similarity
    refined = _refine(test, initial, allowed, (seed_margin, search))
    return Localization(
        similarity, len(seeds), initial, refined, initial_similarity, test.highest([refined])[0], allowed, is_reached,
        MAX_Z_SCORE - number * Z_SCORE_STEP, number,
    )  # fmt: skip


def select_neurons(
    z_scores: Mapping[str, Tensor], values: Mapping[str, Tensor], *, z_score: float, num_top: int
) -> NeuronSet:
    """The neurons above a z-score, and those of highest activation of each layer.

    Args:
        z_scores: By layer [features].
        values: Activations by layer [features].
        z_score: Neurons above it are chosen.
        num_top: So many more of each layer, highest activation first.
    """
    chosen = {}
    for layer, scores in z_scores.items():
        top = values[layer].topk(min(num_top, len(scores))).indices
        chosen[layer] = {*(scores > z_score).nonzero()[:, 0].tolist(), *top.tolist()}
    return NeuronSet.of(chosen)


def _rounds(step: FirstStep, condition: Conditioning, statistics: ActivationStatistics) -> list[NeuronSet]:
    """Neurons that the search for the initial selection switches off, round by round."""
    outputs = activations(step.denoiser.pipeline, statistics.layers, condition)
    values = {layer: value[0] for layer, value in outputs.items()}
    scores = {layer: z[0] for layer, z in statistics.z_scores(outputs).items()}
    num_rounds = round((MAX_Z_SCORE - MIN_Z_SCORE) / Z_SCORE_STEP) + 1
    return [
        select_neurons(scores, values, z_score=MAX_Z_SCORE - number * Z_SCORE_STEP, num_top=number)
        for number in range(num_rounds)
    ]


def _search(test: BlockedSimilarity, rounds: Sequence[NeuronSet], threshold: float) -> tuple[int, float]:
    """The first round that gets to the threshold, or the last one, and its highest similarity.

    One pass tells of all rounds but the last at one seed, which is enough to refuse most of them.
    """
    highest = test.highest(rounds[:1])[0]
    if highest <= threshold:
        return 0, highest
    at_one_seed = test.at_one_seed(rounds[1:-1])
    for number, value in enumerate(at_one_seed, start=1):
        if value <= threshold:
            highest = test.highest([rounds[number]])[0]
            if highest <= threshold:
                return number, highest
    return len(rounds) - 1, test.highest(rounds[-1:])[0]


def _refine(
    test: BlockedSimilarity, neurons: NeuronSet, threshold: float, how: tuple[float | None, Search]
) -> NeuronSet:
    """Without what is not needed: whole layers, the deepest first, then groups of neurons or one by one."""
    seed_margin, search = how
    refine_layer = refine_in_groups if search == "groups" else _refine_layer
    # whole layers: switched on again, one after the other, where the similarity stays allowed without them
    deepest_first = [layer for layer in reversed(test.layers) if neurons.at(layer)]
    for layer in deepest_first:
        if not test.exceeds(neurons.replaced(layer, ()), threshold, first_layer=layer, common=neurons):
            neurons = neurons.replaced(layer, ())
    # single neurons of the layers that are left
    deepest_first = [layer for layer in deepest_first if neurons.at(layer)]
    for layer in deepest_first:
        if seed_margin is not None:
            test.restrict_to_seeds_above(neurons, threshold - seed_margin)
            fewer = refine_layer(test, neurons, layer, threshold)
            test.activate_all_seeds()
            if test.highest([fewer], first_layer=layer, common=neurons)[0] <= threshold:
                neurons = fewer
                continue
        neurons = refine_layer(test, neurons, layer, threshold)
    return neurons


def _refine_layer(test: BlockedSimilarity, neurons: NeuronSet, layer: str, threshold: float) -> NeuronSet:
    """One pass answers for several candidates: as if all before were dropped, or, after one that was not, all kept.

    The more often that comes true, the more are asked at once.
    """
    candidates, are_dropped, ahead = sorted(neurons.at(layer)), True, 1
    while candidates:
        block = candidates[: min(ahead, test.num_at_once if are_dropped else test.batch_size)]
        if are_dropped:
            without = [neurons.replaced(layer, neurons.at(layer) - {*block[: at + 1]}) for at in range(len(block))]
            num = _leading(value <= threshold for value in test.highest(without, first_layer=layer, common=neurons))
            neurons = without[num - 1] if num else neurons
            # the one that is not dropped ends it: those behind it were asked as if it were
            num_answered = num + (num < len(block))
        else:
            without = [neurons.replaced(layer, neurons.at(layer) - {neuron}) for neuron in block]
            num = _leading(value > threshold for value in test.at_one_seed(without, first_layer=layer, common=neurons))
            num_answered = num
        candidates = candidates[num_answered:]
        if num == len(block):
            ahead *= 2
        else:
            are_dropped, ahead = num > 0 if are_dropped else True, 1
    return neurons


def _leading(answers: Iterable[bool]) -> int:
    """Number of leading true values."""
    return sum(1 for _ in takewhile(bool, answers))
