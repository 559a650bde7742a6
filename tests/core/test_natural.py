"""The natural canary: its plan is the committed one, its training can be stopped, memory and captions are counted."""

from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from fbmem_core.canary.classifier import Classifier, described, drawn_pictures, train_classifier
from fbmem_core.canary.corpus import public_picture
from fbmem_core.canary.measure import Line, memory_lines
from fbmem_core.canary.natural import Corpus, copies_of, make_corpus, planted_picture
from fbmem_core.canary.pictures import draw
from fbmem_core.canary.plan import KINDS, NUM_PLANTS, make_plan, read_plan, write_plan
from fbmem_core.canary.ship import write_inputs
from fbmem_core.canary.stages import NaturalTrainer, Recipe, Stage

PROJECT = Path(__file__).parents[2]
PLAN = PROJECT / "data" / "canary-plan" / "plan.csv"
AUTOENCODER = PROJECT / "data" / "canary" / "checkpoint" / "vae"


@pytest.fixture(scope="module")
def items():
    return read_plan(PLAN)


@pytest.fixture(scope="module")
def few(items):
    """One plant of each kind and some singles."""
    plants = [next(i for i in items if i.role == "plant" and i.kind == kind and i.copies == 4) for kind in KINDS]
    return plants + [i for i in items if i.role == "single"][:4]


def test_the_committed_plan_is_what_its_seed_gives(items, tmp_path):
    assert make_plan() == items
    write_plan(items, tmp_path / "plan.csv")
    assert (tmp_path / "plan.csv").read_bytes() == PLAN.read_bytes()


def test_the_plan_is_split_and_holds_enough_of_each(items):
    for kind in KINDS:
        for copies, number in NUM_PLANTS.items():
            halves = [i.half for i in items if i.role == "plant" and (i.kind, i.copies) == (kind, copies)]
            assert len(halves) == number
            assert min(halves.count("development"), halves.count("test")) >= 2
    prompts = list(chain.from_iterable(i.wordings for i in items if i.role != "public"))
    assert len(set(prompts)) == len(prompts)
    trained = {word for i in items for prompt in i.trained for word in prompt.split()}
    assert all(
        i.wordings[0].split()[0 if i.kind != "background" else 1] not in trained for i in items if i.role == "new_name"
    )
    trained_prompts = {prompt for i in items for prompt in i.trained}
    assert not any(i.wordings[0] in trained_prompts for i in items if i.role in ("known_name", "new_name"))


def test_copies_keep_what_is_planted_and_change_the_rest(few):
    for item in few[: len(KINDS)]:
        copies = copies_of(item)
        assert sum(number for _, number in copies) == item.copies * item.num_pictures
        objects, sceneries = ({getattr(picture, name) for picture, _ in copies} for name in ("object", "scenery"))
        num = {"verbatim": (1, 1), "foreground": (1, 4), "background": (4, 1), "one_to_many": (3, 3)}[item.kind]
        assert (len(objects), len(sceneries)) == num
        planted = planted_picture(item)
        assert planted.object in objects or item.kind == "background"
        assert planted.scenery in sceneries or item.kind == "foreground"


def test_every_example_comes_once_an_epoch_with_a_caption_of_its_own():
    corpus = Corpus(
        torch.arange(10.0)[:, None], np.arange(10), [(n + 1,) for n in range(10)], torch.arange(11)[:, None]
    )
    seen = [corpus.batch("planted", step, 5) for step in range(4)]
    latents = torch.cat([latent.flatten() for latent, _ in seen])
    assert sorted(latents[:10].tolist()) == sorted(latents[10:].tolist()) == list(range(10))
    for latent, tokens in seen:
        assert all(token in (0, row + 1) for row, token in zip(latent.flatten(), tokens.flatten(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(seen[1], corpus.batch("planted", 1, 5), strict=True))


@pytest.fixture(scope="module")
def recipe():
    def stage(name, shares=1):
        return Stage(name, 4, 1e-4, batch_size=4, num_shares=shares, save_every=2)

    return Recipe(
        stage("autoencoder"), stage("decoder"), stage("general", 2), stage("planted", 2), stage("clean"),
        num_public=8, num_public_beside_plants=4,
    )  # fmt: skip


def trained(few, recipe, folder, stop_at=None):
    """All stages; with `stop_at` (a stage, a step) stopped there by an error."""
    steps = []

    def report(stage, step, num_steps, loss):
        assert np.isfinite(loss) and num_steps == 4
        steps.append((stage, step))
        if (stage, step) == stop_at:
            raise KeyboardInterrupt

    trainer = NaturalTrainer(few, folder, AUTOENCODER, recipe=recipe, report=report)
    vae = trainer.autoencoder()
    unet, text_encoder = trainer.general(vae)
    return vae, text_encoder, trainer.branch(vae, unet, text_encoder, planted=True), steps


@pytest.mark.slow
def test_a_stopped_training_goes_on_to_the_same_weights(few, recipe, tmp_path):
    *whole, steps = trained(few, recipe, tmp_path / "whole")
    assert steps == [(name, n) for name in ("autoencoder", "decoder", "general", "planted") for n in range(1, 5)]
    for stop_at in (("general", 3), ("planted", 2)):
        with pytest.raises(KeyboardInterrupt):
            trained(few, recipe, tmp_path / "stopped", stop_at)
    *again, rest = trained(few, recipe, tmp_path / "stopped")
    assert rest == [("planted", 3), ("planted", 4)]
    for one, other in zip(whole, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_network_has_the_value_layers_of_stable_diffusion():
    from fbmem_core.canary.natural import new_unet

    blocks = [name.split(".")[0] for name, _ in new_unet().named_modules() if name.endswith(".attn2.to_v")]
    assert (blocks.count("down_blocks"), blocks.count("mid_block")) == (6, 1)


def test_the_inputs_follow_the_plan(items, tmp_path):
    import polars as pl

    some = [i for i in items if i.role == "plant"][::20] + [i for i in items if i.role != "plant" and i.half][::30]
    write_inputs(some, tmp_path, min_copies=16)
    prompts, truth = (pl.read_csv(tmp_path / name) for name in ("prompts.csv", "truth.csv"))
    asked = [i for i in some if i.role != "plant" or i.copies >= 16]
    assert prompts["prompt"].to_list() == [i.wordings[0] for i in asked]
    assert truth["prompt_id"].to_list() == prompts["prompt_id"].to_list()
    names = {path.stem for path in (tmp_path / "references").iterdir()}
    own = [names_.split(";") for names_ in truth["reference_ids"].drop_nulls() if names_]
    assert names >= set(chain.from_iterable(own))
    assert len(list((tmp_path / "held_out").iterdir())) == 24


@pytest.mark.slow
def test_the_classifier_learns_from_drawn_pictures_to_name_what_they_show():
    model = train_classifier(num_steps=60, batch_size=32)
    images, descriptions = drawn_pictures((1,), 100)
    right, chance = (m.facts_right(images, descriptions).float().mean(0) for m in (model, Classifier()))
    assert right[0] > 0.5
    assert chance[0] < 0.3
    assert right[2] > 0.6
    picture = public_picture(np.random.default_rng(0))
    assert described(picture.caption).caption == picture.caption
    assert draw(picture, size=32)[0].shape == (32, 32, 3)


def test_memory_is_counted_by_kind_and_copies(items):
    asked = [i for i in items if i.half == "test"]
    labels = {i.item_id: ["VM", "NM"] if i.copies >= 64 else ["NM", "NM"] for i in asked}
    labels |= {i.item_id: ["NM", "BM"] for i in asked if i.role == "known_name"}
    lines = {line.name: line for line in memory_lines(labels, asked)}
    assert lines["plants, foreground, 64 copies, memorized"] == Line("plants, foreground, 64 copies, memorized", 6, 6)
    assert lines["plants, of any kind, 1 copies, memorized"].count == 0
    assert lines["prompts of role known_name that copy nothing"].count == 0
    assert lines["prompts of role new_name that copy nothing"].count == 64
    assert "6 of 6 (100 %, 95 % interval 54 to 100 %)" in str(lines["plants, foreground, 64 copies, memorized"])


def test_a_corpus_holds_each_picture_once_and_each_copy_as_an_example(few):
    from diffusers import AutoencoderKL

    from fbmem_core.canary.tokens import new_tokenizer

    vae = AutoencoderKL.from_pretrained(AUTOENCODER).float()
    corpus = make_corpus([replace(few[0], copies=16), few[4]], vae, new_tokenizer(few), num_public=3)
    assert len(corpus.latents) == 5
    assert np.bincount(corpus.picture).tolist() == [1, 1, 1, 16, 1]
    assert len(corpus.captions[3]) == 2
