"""Studies on data whose answer is known."""

import numpy as np
import pytest

from fbmem_core.evaluation.foreground_probe import foreground_probe
from fbmem_core.evaluation.studies import (
    cluster_agreement,
    consistency,
    neuron_sharing,
    policy_findings,
    stable_range,
)
from fbmem_core.neurons.layers import NeuronSet

FAMILIES = {f"p{n}": f"f{n // 2}" for n in range(24)}  # two wordings of twelve things


def neurons(*indices):
    return NeuronSet.of({"mid": indices})


def test_the_stable_range_ends_where_less_is_removed():
    before = {(f"p{n}", 0): "FM" for n in range(20)}
    left = {6: 20, 12: 1, 18: 0, 24: 20}  # copies that are left
    after = {k: {(f"p{n}", 0): "FM" if n < left[k] else "NM" for n in range(20)} for k in left}
    found = stable_range(before, after)
    assert (found.value, found.low, found.high) == (18, 12, 18)
    assert "from 12 to 18 of the 6 to 24" in found.sentence
    assert stable_range(before, {6: after[6]}).value is None


def test_prompts_of_one_cluster_share_neurons_where_they_do_and_not_where_they_do_not():
    clusters = {prompt: int(prompt[1:]) // 6 for prompt in FAMILIES}
    alike = {prompt: neurons(clusters[prompt], 10 + clusters[prompt]) for prompt in FAMILIES}
    found = neuron_sharing(alike, clusters, FAMILIES)
    assert found.value == pytest.approx(1.0)
    assert found.low > 0
    assert "share neurons more than" in found.sentence
    generator = np.random.default_rng(0)
    random = {prompt: neurons(*generator.choice(50, 8, replace=False)) for prompt in FAMILIES}
    unlike = neuron_sharing(random, clusters, FAMILIES)
    assert unlike.low < 0 < unlike.high
    assert "no more, as far as can be told" in unlike.sentence


def test_wordings_of_one_thing_do_not_count_as_sharing():
    own = {prompt: neurons(int(family[1:])) for prompt, family in FAMILIES.items()}
    one_cluster_each = {prompt: int(family[1:]) for prompt, family in FAMILIES.items()}
    assert neuron_sharing(own, one_cluster_each, FAMILIES).value is None


def test_clusters_that_are_the_families_are_right():
    same = {prompt: int(family[1:]) for prompt, family in FAMILIES.items()}
    assert cluster_agreement(same, FAMILIES).value == 1
    assert cluster_agreement(dict.fromkeys(FAMILIES, 0), FAMILIES).value == 0


def test_the_probe_finds_the_trait_that_decides_and_no_other():
    generator = np.random.default_rng(0)
    traits = generator.normal(size=(60, 2))
    survived = traits[:, 0] + 0.3 * generator.normal(size=60) > 0
    area, size, place = foreground_probe(
        traits, ("size", "place"), survived.tolist(), [f"f{n // 2}" for n in range(60)], subject="nemo_c"
    )
    assert area.value > 0.9
    assert area.low > 0.5
    assert size.low > 0
    assert place.low < 0 < place.high
    assert "survives more often" in size.sentence


def test_too_few_survivors_are_said_so():
    [found] = foreground_probe(np.zeros((30, 1)), ("size",), [False] * 30, list(range(30)), subject="fade")
    assert found.value is None
    assert found.sentence == "Under fade 0 of 30 copied foregrounds survive: too few to compare."


def test_checkpoints_that_remember_the_same_share_all_and_others_what_chance_gives():
    first = {f"p{n}": {n, n + 1} for n in range(10)}
    same = consistency(first, first, quantity="neurons", subject="seed 2")
    assert (same.value, same.low, same.high) == (1, 1, 1)
    shifted = {f"p{n}": {n + 1, n + 2} for n in range(10)}
    assert consistency(first, shifted, quantity="neurons", subject="seed 2").value == pytest.approx(1 / 3)
    assert consistency({"a": set()}, {"a": set()}, quantity="neurons", subject="x").value is None


def test_a_policy_weighs_what_is_copied_by_its_heaviest_tag():
    severities = {"a": 2.0, "b": 1.5, "c": 1.5, "d": 0.0}
    tags = {"a": ["public_domain"], "b": ["person", "public_domain"], "c": [], "d": []}
    rows = {
        one.subject: one
        for one in policy_findings(severities, tags, {"public_domain": 0.0, "person": 1.0, "default": 0.5})
    }
    assert rows["all prompts"].value == pytest.approx((0 + 1.5 + 0.75 + 0) / 4)
    assert rows["person"].value == 1.5
    assert rows["public_domain"].value == 0
    assert rows["untagged"].num == 1
