"""The prefilter: it says what it lost, and what it lets through is compared exactly."""

import math

import open_clip
import pytest
import torch

from fbmem_core.errors import InputError, WeightsNotFoundError
from fbmem_core.retrieval.descriptors import region_descriptors
from fbmem_core.retrieval.descriptors.latents import Latents
from fbmem_core.retrieval.descriptors.open_clip import OpenClip
from fbmem_core.retrieval.neighbors import Neighbor, nearest_references
from fbmem_core.retrieval.prefilter import Prefilter, measure_recall
from tests.core.test_neighbors import generation_set, reference_set


class Thumbnail:
    """A thumbnail as the vector."""

    name, fill, device = "thumbnail", (0.5, 0.5, 0.5), "cpu"

    def __call__(self, images):
        return torch.nn.functional.interpolate(images, size=(6, 6), mode="area").flatten(1)


@pytest.fixture(scope="module")
def sets():
    return generation_set(), reference_set()


def test_only_candidates_are_neighbors_and_they_have_their_exact_similarity(sets):
    generations, references = sets
    candidates = {name: ["r3", "r9", "r30"] for name in generations.ids}
    full = dict(nearest_references(generations, references, floor=0.0, top_k=len(references)))
    some = dict(nearest_references(generations, references, floor=0.0, top_k=2, candidates=candidates))
    for generation, neighbors in some.items():
        assert {n.reference_id for n in neighbors} <= {"r3", "r9", "r30"}
        value = {(n.region, n.reference_id): n.similarity for n in full[generation]}
        assert len(neighbors) > 0
        for n in neighbors:
            assert n.similarity == pytest.approx(value[n.region, n.reference_id], abs=1e-6)


def test_no_neighbor_is_complete_unless_every_reference_is_a_candidate(sets):
    generations, references = sets
    some = dict.fromkeys(generations.ids, references.ids[1:])
    every = dict.fromkeys(generations.ids, references.ids)
    found = [n for _, ns in nearest_references(generations, references, floor=0.0, candidates=some) for n in ns]
    assert found
    assert not any(n.complete for n in found)
    expected = dict(nearest_references(generations, references, floor=0.0))
    assert dict(nearest_references(generations, references, floor=0.0, candidates=every)) == expected


def test_a_copied_region_is_a_candidate_by_its_own_embedding(sets):
    generations, references = sets
    candidates = Prefilter(references, Thumbnail(), num_candidates=3).candidates(generations)
    nearest = dict(nearest_references(generations, references, floor=0.0, top_k=1))
    for name in ("g0", "g4"):
        best = {n.region: n.reference_id for n in nearest[name] if n.rank == 1}
        assert best["foreground"] in candidates[name]
    assert all(3 <= len(found) <= 9 for found in candidates.values())


def test_embeddings_have_unit_length_and_tell_regions_apart(sets):
    vectors = region_descriptors(sets[1].select(range(4)), Thumbnail())
    assert list(vectors) == ["full", "foreground", "background"]
    assert all(torch.allclose(v.norm(dim=1), torch.ones(4), atol=1e-5) for v in vectors.values())
    assert not torch.allclose(vectors["foreground"], vectors["background"])


def test_recall_counts_the_pairs_that_a_full_search_finds():
    def neighbor(region, name, similarity):
        return Neighbor(region, 1, name, similarity)

    exact = {
        "g0": [neighbor("full", "a", 0.9), neighbor("foreground", "b", 0.7), neighbor("background", "c", 0.3)],
        "g1": [neighbor("full", "a", 0.65)],
    }
    recall = measure_recall(exact, {"g0": ["a", "c"], "g1": ["a"]}, floor=0.6)
    assert (recall.num_generations, recall.num_pairs, recall.num_kept) == (2, 3, 2)
    assert recall.value == pytest.approx(2 / 3)
    assert math.isnan(measure_recall({}, {}, floor=0.6).value)


def test_the_pipelines_autoencoder_embeds_alike_what_looks_alike(tiny_checkpoint):
    from diffusers import AutoencoderKL

    embedder = Latents(AutoencoderKL.from_pretrained(tiny_checkpoint / "vae"), image_size=64)
    images = torch.rand(2, 3, 100, 100, generator=torch.Generator().manual_seed(0))
    near = (images[:1] + 0.01).clamp(0, 1)
    one, other, like = torch.nn.functional.normalize(embedder(torch.cat([images, near])), dim=1)
    assert one.shape == (64 * 4,)
    assert one @ like > 0.99 > one @ other


def test_open_clip_embeds_with_weights_from_a_file(tmp_path):
    torch.manual_seed(0)
    torch.save(open_clip.create_model("RN50-quickgelu", pretrained=None).state_dict(), tmp_path / "weights.pt")
    embedder = OpenClip("RN50-quickgelu", str(tmp_path / "weights.pt"))
    vectors = embedder(torch.rand(2, 3, 64, 64))
    assert vectors.shape == (2, 1024)
    assert torch.isfinite(vectors).all()


def test_weights_that_cannot_be_had_are_one_clear_line():
    with pytest.raises(WeightsNotFoundError, match="Expected the weights `nowhere` of open_clip's RN50"):
        OpenClip("RN50", "nowhere")


def test_no_candidates_at_all_is_refused(sets):
    with pytest.raises(InputError, match="at least one candidate"):
        Prefilter(sets[1], Thumbnail(), num_candidates=0)
