"""Studies of questions that the paper (arXiv 2508.12148) leaves open. Each ends in a value, an interval and a sentence.

Intervals draw independent things, such as families of wordings, and never single images.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from fbmem_core.evaluation.scores import Labels, mitigation_score, score_difference
from fbmem_core.labels import SEVERITY
from fbmem_core.neurons.layers import NeuronSet

NUM_RESAMPLES = 2000
INTERVAL = (2.5, 97.5)  # percentiles


@dataclass(frozen=True)
class Finding:
    """One quantity of a study.

    Attributes:
        study: Its name.
        subject: What it is measured on.
        quantity: What is measured.
        value: None where it cannot be measured.
        low: Lower end of the 95 % interval, if there is one.
        high: Upper end.
        num: Independent cases.
        sentence: What it says.
    """

    study: str
    subject: str
    quantity: str
    value: float | None
    low: float | None
    high: float | None
    num: int
    sentence: str

    def row(self) -> dict[str, Any]:
        """Row of the table `studies`."""
        return asdict(self)


def stable_range(before: Labels, after: Mapping[int, Labels]) -> Finding:
    """The numbers of clusters around the best one from which it cannot be told apart.

    Args:
        before: Labels without mitigation, by (prompt_id, seed).
        after: By number of clusters, the labels under NeMo-C with so many.
    """
    name, counts = "cluster_range", sorted(after)
    if len(counts) < 2:
        sentence = "Fewer than two numbers of clusters were tried with `nemo_c`."
        return Finding(name, "nemo_c", "clusters", None, None, None, len(counts), sentence)
    scores = {count: mitigation_score(before, after[count]).score for count in counts}
    best = max(counts, key=scores.__getitem__)
    equal = [count for count in counts if count == best or _is_equal(before, after[best], after[count])]
    low = high = counts.index(best)
    while low > 0 and counts[low - 1] in equal:
        low -= 1
    while high + 1 < len(counts) and counts[high + 1] in equal:
        high += 1
    families = len({prompt_id for prompt_id, _ in before})
    sentence = (
        f"NeMo-C removes most with {best} clusters (score {scores[best]:.3f}); from {counts[low]} to {counts[high]} of "
        f"the {counts[0]} to {counts[-1]} that were tried it cannot be told apart from that (95 %)."
    )
    return Finding(name, "nemo_c", "clusters", float(best), float(counts[low]), float(counts[high]), families, sentence)


def neuron_sharing(
    neurons: Mapping[str, NeuronSet],
    clusters: Mapping[str, int],
    families: Mapping[str, Hashable],
    *,
    subject: str = "all prompts",
    seed: int = 0,
) -> Finding:
    """Measure how many more neurons two prompts of one cluster share than two of different clusters (Jaccard index).

    Wordings of one thing share their neurons anyway, so only pairs of different families count.
    """
    prompts = [prompt for prompt in neurons if prompt in clusters and len(neurons[prompt])]
    pairs = [
        (a, b, _jaccard(neurons[a], neurons[b])) for a, b in combinations(prompts, 2) if families[a] != families[b]
    ]
    groups = sorted({str(families[prompt]) for prompt in prompts})

    number = {group: index for index, group in enumerate(groups)}
    first = np.array([number[str(families[a])] for a, _, _ in pairs], dtype=int)
    second = np.array([number[str(families[b])] for _, b, _ in pairs], dtype=int)
    values = np.array([value for _, _, value in pairs])
    is_same = np.array([clusters[a] == clusters[b] for a, b, _ in pairs], dtype=bool)

    def difference(weights: np.ndarray) -> float:
        times = weights[first] * weights[second]
        total, of_same = times.sum(), times[is_same].sum()
        if not 0 < of_same < total:
            return np.nan
        same, different = (times[kind] @ values[kind] for kind in (is_same, ~is_same))
        return float(same / of_same - different / (total - of_same))

    value, low, high = _over_groups(difference, groups, seed)
    if value is None:
        sentence = f"Of {subject}, no two things lie in one cluster, so clusters cannot be compared by their neurons."
    else:
        more = "more than" if low is not None and low > 0 else "no more, as far as can be told, than"
        sentence = (
            f"Of {subject}, prompts of one cluster share neurons {more} prompts of two: "
            f"{value:+.3f} in Jaccard index {span(low, high)}."
        )
    return Finding("domains", subject, "shared neurons", value, low, high, len(groups), sentence)


def cluster_agreement(
    clusters: Mapping[str, int], families: Mapping[str, Hashable], *, subject: str = "all prompts", seed: int = 0
) -> Finding:
    """Agreement of clusters with families: the adjusted Rand index of clusters and families, 1 if they are the same."""
    from sklearn.metrics import adjusted_rand_score

    prompts = sorted(clusters)
    groups = sorted({str(families[prompt]) for prompt in prompts})

    number = {group: index for index, group in enumerate(groups)}
    family = np.array([number[str(families[prompt])] for prompt in prompts])
    cluster = np.array([clusters[prompt] for prompt in prompts])

    def index(weights: np.ndarray) -> float:
        is_drawn = weights[family] > 0
        return float(adjusted_rand_score(family[is_drawn], cluster[is_drawn]))

    value, low, high = _over_groups(index, groups, seed, num_resamples=200)
    sentence = f"Of {subject}, clusters agree with what prompts are about: {value:.2f} {span(low, high)} (Rand index)."
    return Finding("domains", subject, "Rand index", value, low, high, len(groups), sentence)


def consistency(first: Mapping[str, Any], second: Mapping[str, Any], *, quantity: str, subject: str) -> Finding:
    """Likeness of two checkpoints, prompt by prompt: mean Jaccard index of the sets behind the prompts of both.

    Args:
        first: By prompt, a set: the matched references, the neurons, or {"memorized"}.
        second: Of the other checkpoint.
        quantity: What the sets hold.
        subject: The other checkpoint.
    """
    shared = [prompt for prompt in first if prompt in second and (len(first[prompt]) or len(second[prompt]))]
    values = [_jaccard(first[prompt], second[prompt]) for prompt in shared]
    if not values:
        sentence = f"No prompt has {quantity} in this checkpoint or in {subject}."
        return Finding("consistency", subject, quantity, None, None, None, 0, sentence)

    value, low, high = _mean(values)
    by_chance = _jaccard_by_chance(first, second, shared)
    sentence = (
        f"This checkpoint and {subject} share {value:.2f} {span(low, high)} of the {quantity} of a prompt; prompts "
        f"put together by chance share {by_chance:.2f}."
    )
    return Finding("consistency", subject, quantity, value, low, high, len(shared), sentence)


def policy_findings(
    severities: Mapping[str, float], tags: Mapping[str, Sequence[str]], weights: Mapping[str, float]
) -> list[Finding]:
    """Weight of copies under a policy: the mean severity of prompts, times the weight of what they copy.

    Args:
        severities: By prompt, the mean severity of its images.
        tags: By prompt, the tags of the references that it copies; the heaviest counts.
        weights: By tag, from 0 (harmless) to 1; `default` for a reference without tags.
    """
    default = weights.get("default", 1.0)
    findings = []
    for tag in sorted({tag for own in tags.values() for tag in own} | {"untagged"}):
        is_own = {prompt: tag in own if own else tag == "untagged" for prompt, own in tags.items()}
        prompts = [prompt for prompt, own in is_own.items() if own and severities.get(prompt, 0) > 0]
        if not prompts:
            continue
        weight = default if tag == "untagged" else weights.get(tag, default)
        weighed = [severities[prompt] * weight for prompt in prompts]
        value, low, high = _mean(weighed)
        sentence = (
            f"{len(prompts)} prompts copy what is tagged `{tag}`: a severity of {value:.2f} {span(low, high)} after "
            f"its weight of {weight:g}."
        )
        findings.append(Finding("policy", tag, "weighed severity", value, low, high, len(prompts), sentence))
    heaviest = [
        severity * max((weights.get(tag, default) for tag in tags.get(prompt, ())), default=default)
        for prompt, severity in severities.items()
    ]
    value, low, high = _mean(heaviest)
    sentence = f"Under the policy the audit weighs {value:.2f} {span(low, high)} of at most {max(SEVERITY.values()):g}."
    findings.append(Finding("policy", "all prompts", "weighed severity", value, low, high, len(heaviest), sentence))
    return findings


def _is_equal(before: Labels, best: Labels, rival: Labels) -> bool:
    difference = score_difference(before, best, rival)
    return difference.low is not None and difference.low <= 0


def _jaccard(first: Any, second: Any) -> float:
    left, right = set(first), set(second)
    return len(left & right) / len(left | right) if left | right else 0.0


def _jaccard_by_chance(first: Mapping[str, Any], second: Mapping[str, Any], prompts: Sequence[str]) -> float:
    pairs = [(a, b) for a in prompts for b in prompts if a != b]
    return float(np.mean([_jaccard(first[a], second[b]) for a, b in pairs])) if pairs else 0.0


def _mean(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    numbers = np.asarray(values, dtype=float)
    value, low, high = _over_groups(lambda weights: float(weights @ numbers / weights.sum()), range(len(values)), 0)
    return value or 0.0, low, high


def _over_groups(
    measure: Callable[[np.ndarray], float], groups: Sequence[Any], seed: int, num_resamples: int = NUM_RESAMPLES
) -> tuple[float | None, float | None, float | None]:
    """A measure of how often each group counts [groups], and its interval over drawn groups."""
    value = measure(np.ones(len(groups), dtype=int)) if groups else np.nan
    if not np.isfinite(value):
        return None, None, None
    if len(groups) < 2:
        return value, None, None
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(len(groups), np.full(len(groups), 1 / len(groups)), size=num_resamples)
    values = [measure(row) for row in drawn]
    low, high = np.nanpercentile(values, INTERVAL)
    return value, float(low), float(high)


def span(low: float | None, high: float | None) -> str:
    """Words for an interval.

    >>> span(0.25, 0.5)
    '[0.25, 0.50]'
    """
    return "(no interval)" if low is None or high is None else f"[{low:.2f}, {high:.2f}]"
