"""Prompt clusters: by either encoder, without empty ones, and the same every time."""

import csv
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from fbmem_core.clustering import cluster_prompts, cluster_quality, open_clip_embeddings, pipeline_embeddings
from fbmem_core.diffusion.checkpoint import find_checkpoint
from fbmem_core.diffusion.loading import load_pipeline
from fbmem_core.errors import InputError, WeightsNotFoundError

CANARY = Path(__file__).parents[2] / "data" / "canary"
CENTERS = np.array([[0, 0], [9, 0], [0, 9]], dtype=np.float32)


def three_groups():
    rng = np.random.default_rng(0)
    return np.repeat(CENTERS, (4, 8, 2), axis=0) + rng.normal(size=(14, 2)).astype(np.float32) / 10


def test_clusters_are_numbered_from_the_largest():
    found = cluster_prompts(three_groups(), count=3)
    assert found.cluster.tolist() == [1] * 4 + [0] * 8 + [2] * 2
    assert found.sizes == [8, 4, 2]
    assert (found.distance < 0.5).all()


def test_clusters_are_the_same_every_time():
    points = np.random.default_rng(1).normal(size=(60, 4)).astype(np.float32)
    assert cluster_prompts(points, count=7).cluster.tolist() == cluster_prompts(points, count=7).cluster.tolist()


def test_there_are_never_more_clusters_than_different_prompts():
    points = np.repeat(CENTERS, 2, axis=0)
    assert cluster_prompts(points, count=12).sizes == [2, 2, 2]
    assert cluster_prompts(points[:1], count=12).sizes == [1]


@pytest.mark.parametrize(("points", "count"), [(CENTERS[:0], 2), (CENTERS, 0)])
def test_nothing_to_cluster_is_refused(points, count):
    with pytest.raises(InputError, match="Expected a prompt and at least one cluster"):
        cluster_prompts(points, count=count)


def test_the_right_number_of_clusters_has_the_best_silhouette_and_is_stable():
    found = {count: cluster_quality(three_groups(), count=count) for count in (1, 2, 3, 6)}
    assert max((2, 3, 6), key=lambda count: found[count].silhouette) == 3
    assert found[3].stability == 1.0
    assert found[6].stability < 1.0
    assert found[1].silhouette is None


def test_the_pipelines_encoder_gives_its_last_hidden_states_flattened(tiny_checkpoint):
    pipeline = load_pipeline(find_checkpoint(str(tiny_checkpoint)), dtype="float32", device="cpu")
    prompts = ["a red circle", "a red circle", "clockwork owl poster"]
    found = pipeline_embeddings(pipeline, prompts)
    tokens = pipeline.tokenizer(prompts, padding="max_length", max_length=32, truncation=True, return_tensors="pt")
    expected = pipeline.text_encoder(tokens.input_ids).last_hidden_state.flatten(1)
    assert np.allclose(found, expected.detach().numpy(), atol=1e-6)
    assert cluster_prompts(found, count=5).cluster.tolist() == [0, 0, 1]


def test_open_clip_gives_unit_vectors_from_weights_in_a_file(tmp_path):
    torch.manual_seed(0)
    torch.save(open_clip.create_model("RN50-quickgelu", pretrained=None).state_dict(), tmp_path / "weights.pt")
    prompts = ["a cat", "a cat", "a dog on the moon"]
    found = open_clip_embeddings(prompts, model="RN50-quickgelu", weights=str(tmp_path / "weights.pt"))
    assert found.shape == (3, 1024)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert np.allclose(found[0], found[1], atol=1e-5)
    assert not np.allclose(found[0], found[2], atol=1e-3)


def test_open_clip_without_weights_or_model_is_one_clear_line():
    with pytest.raises(WeightsNotFoundError, match="Expected the weights `nowhere` of open_clip's RN50"):
        open_clip_embeddings(["a cat"], model="RN50", weights="nowhere")
    with pytest.raises(InputError, match="Expected the name of an open_clip model"):
        open_clip_embeddings(["a cat"], model="no-such-model")


@pytest.mark.parametrize(("file", "count"), [("prompts.csv", 24), ("paraphrases.csv", 17)])
def test_the_pipelines_encoder_recovers_the_canarys_families(file, count):
    with (CANARY / file).open(encoding="utf-8", newline="") as rows:
        prompts = {row["prompt_id"]: row["prompt"] for row in csv.DictReader(rows)}
    pipeline = load_pipeline(find_checkpoint(str(CANARY / "checkpoint")), dtype="float32", device="cpu")
    found = cluster_prompts(pipeline_embeddings(pipeline, list(prompts.values())), count=count).cluster
    planted = {name: row for row, name in enumerate(prompts) if not name.startswith("public")}
    assert len(planted) == {"prompts.csv": 24, "paraphrases.csv": 109}[file]
    families = [name.rsplit("-", 1)[0] for name in planted]
    assert adjusted_rand_score(families, found[list(planted.values())]) >= 0.8
