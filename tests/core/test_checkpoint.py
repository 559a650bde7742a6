"""Checkpoints: what their fingerprint covers, and what is missing said by name."""

import json
import os
import shutil

import pytest
import torch

from fbmem_core.diffusion.checkpoint import find_checkpoint, stamp
from fbmem_core.diffusion.device import choose_device
from fbmem_core.diffusion.hub import hub_revision
from fbmem_core.diffusion.loading import load_pipeline
from fbmem_core.diffusion.pipeline_files import pipeline_files
from fbmem_core.errors import InputError, WeightsNotFoundError

UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint, tmp_path / "model")


def change_last_byte(path):
    """Of weights; JSON, which must stay JSON, gets a space more."""
    content = bytearray(path.read_bytes())
    if path.suffix == ".json":
        content += b" "
    else:
        content[-1] ^= 1
    path.write_bytes(content)


def test_a_checkpoint_is_found_with_its_architecture(tiny_checkpoint):
    checkpoint = find_checkpoint(str(tiny_checkpoint))
    assert checkpoint.directory == tiny_checkpoint
    assert checkpoint.architecture == "StableDiffusionPipeline"
    assert len(checkpoint.fingerprint) == 64
    assert set(checkpoint.fingerprint) <= set("0123456789abcdef")


def test_the_files_that_count_are_the_index_the_configs_and_the_weights(tiny_checkpoint):
    files = {path.as_posix() for path in pipeline_files(tiny_checkpoint)}
    assert {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "unet/config.json",
        UNET_WEIGHTS,
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "tokenizer/tokenizer_config.json",
    } <= files
    assert {name.split("/")[0] for name in files} == {
        "model_index.json", "scheduler", "text_encoder", "tokenizer", "unet", "vae",
    }  # fmt: skip


def test_the_fingerprint_is_that_of_the_content_wherever_and_whenever_it_lies(tiny_checkpoint, copy):
    before = find_checkpoint(str(tiny_checkpoint)).fingerprint
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
    (copy / "README.md").write_text("about")
    (copy / "unet" / "README.md").write_text("about")
    (copy / "safety_checker").mkdir()
    (copy / "safety_checker" / "model.safetensors").write_bytes(b"unused")
    assert find_checkpoint(str(copy)).fingerprint == before


@pytest.mark.parametrize(
    "name",
    [
        UNET_WEIGHTS,
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer_config.json",
    ],
)
def test_one_byte_of_weights_or_config_changes_the_fingerprint(copy, name):
    before = find_checkpoint(str(copy)).fingerprint
    change_last_byte(copy / name)
    assert find_checkpoint(str(copy)).fingerprint != before


def test_files_that_change_places_change_the_fingerprint(copy):
    before = find_checkpoint(str(copy)).fingerprint
    one, other = copy / "text_encoder" / "config.json", copy / "tokenizer" / "tokenizer_config.json"
    held = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(held)
    assert find_checkpoint(str(copy)).fingerprint != before


@pytest.mark.parametrize("name", ["scheduler", "text_encoder", "tokenizer", "unet", "vae"])
def test_a_missing_component_is_named(copy, name):
    shutil.rmtree(copy / name)
    with pytest.raises(
        InputError, match=rf"^Expected the component `{name}`, but got no such folder in .*Copy the check"
    ):
        find_checkpoint(str(copy))


@pytest.mark.parametrize("name", ["text_encoder", "unet", "vae"])
def test_missing_weights_are_named(copy, name):
    for path in (copy / name).glob("*.safetensors"):
        path.unlink()
    message = rf"weights of `{name}` \(\*\.safetensors\), but got none in .*/{name}\. Copy the checkpoint"
    with pytest.raises(InputError, match=message):
        find_checkpoint(str(copy))


def test_a_missing_config_is_named(copy):
    (copy / "unet" / "config.json").unlink()
    with pytest.raises(InputError, match=r"a config of `unet`, but got none in .*/unet\."):
        find_checkpoint(str(copy))


def test_a_directory_that_is_no_pipeline_says_what_is_missing(copy):
    (copy / "model_index.json").unlink()
    with pytest.raises(InputError, match=r"with model_index\.json, but got none in .*model\. Point `checkpoint` at"):
        find_checkpoint(str(copy))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"model_index\.json to be JSON, but got .*\. Save it anew"),
        ("{}", r"a pipeline's components, but got none in .*model_index\.json\. Save the pipeline"),
        ("[]", r"a pipeline's components, but got none in .*model_index\.json\. Save the pipeline"),
        ('{"unet": ["diffusers", "UNet2DConditionModel"]}', r"a pipeline's components, but got none"),
    ],
)
def test_a_broken_index_is_one_line_with_the_cure(copy, content, message):
    (copy / "model_index.json").write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        find_checkpoint(str(copy))
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_refused_unless_they_are_trusted(copy):
    weights = copy / UNET_WEIGHTS
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(InputError, match=r"safetensors weights of `unet`, but got `diffusion_.*\.bin` .*allow_pickle"):
        find_checkpoint(str(copy))
    trusted = find_checkpoint(str(copy), allow_pickle=True)
    change_last_byte(weights.with_suffix(".bin"))
    assert find_checkpoint(str(copy), allow_pickle=True).fingerprint != trusted.fingerprint


def test_pickles_beside_safetensors_do_not_count(copy):
    before = find_checkpoint(str(copy)).fingerprint
    (copy / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    assert find_checkpoint(str(copy)).fingerprint == before


@pytest.mark.parametrize("source", ["nobody/has-such-a-model", "no id at all", "../nowhere"])
def test_a_checkpoint_that_cannot_be_had_says_where_it_was_looked_for(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsNotFoundError, match=r"^Expected the checkpoint `.*hub cache.*local directory") as caught:
        find_checkpoint(source)
    assert source in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "kept", "message"),
    [
        (UNET_WEIGHTS, 0, "but got 0 and no header"),
        (UNET_WEIGHTS, 7, "but got 7 and no header"),
        (UNET_WEIGHTS, 900, "but got 900 and no header"),
        (UNET_WEIGHTS, -1, r"but got \d+ of \d+ in .*unet/diffusion_pytorch_model.safetensors\. Copy"),
        ("unet/config.json", 40, r"whole JSON, but got .* in .*unet/config.json\. Copy"),
        ("tokenizer/tokenizer.json", -2, "whole JSON"),
    ],
)
def test_a_file_that_is_still_being_copied_is_named(copy, name, kept, message):
    (copy / name).write_bytes((copy / name).read_bytes()[:kept])
    with pytest.raises(InputError, match=message) as caught:
        find_checkpoint(str(copy))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("header", [b"[]", b"{", b'{"a": 1}', b'{"a": {"data_offsets": "no"}}', b"\xff"])
def test_weights_with_a_broken_header_are_named(copy, header):
    (copy / UNET_WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(InputError, match="all bytes of the weights"):
        find_checkpoint(str(copy))


def test_the_stamp_changes_with_every_write_and_touch_and_with_nothing_else(copy):
    files = pipeline_files(copy)
    before = stamp(copy, files)
    (copy / "unet" / "README.md").write_text("about")
    assert stamp(copy, files) == before
    os.utime(copy / UNET_WEIGHTS, (1, 1))
    touched = stamp(copy, files)
    (copy / UNET_WEIGHTS).write_bytes((copy / UNET_WEIGHTS).read_bytes() + b"0")
    os.utime(copy / UNET_WEIGHTS, (1, 1))
    assert len({before, touched, stamp(copy, files)}) == 3


def test_a_checkpoint_whose_weights_are_in_shards_needs_every_one_in_its_folder(copy):
    unet, index = copy / "unet", copy / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "diffusion_pytorch_model.safetensors"}}))
    find_checkpoint(str(copy))
    for shard in ("diffusion_pytorch_model-00002-of-00002.safetensors", "../vae/diffusion_pytorch_model.safetensors"):
        index.write_text(json.dumps({"weight_map": {"a": "diffusion_pytorch_model.safetensors", "b": shard}}))
        with pytest.raises(InputError, match=f"every shard of the weights, but got no `{shard}` in {unet}"):
            find_checkpoint(str(copy))
    index.write_text("[]")
    with pytest.raises(InputError, match="an index with a weight_map"):
        find_checkpoint(str(copy))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("unet", ["trap", "UNet"]),
        ("_class_name", ["trap", "Pipeline"]),
        ("../outside", ["diffusers", "UNet2DConditionModel"]),
        ("/etc", ["diffusers", "UNet2DConditionModel"]),
    ],
)
def test_code_that_comes_with_a_checkpoint_is_neither_loaded_nor_run(copy, name, value):
    sprung = copy / "sprung"
    for folder in (copy, copy / "unet"):
        (folder / "trap.py").write_text(f"open({str(sprung)!r}, 'w')\nclass UNet: pass\nclass Pipeline: pass\n")
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {name: value}))
    with pytest.raises(InputError, match=r"Expected components of diffusers and transformers.*is not run"):
        find_checkpoint(str(copy))
    assert not sprung.exists()


COMMITS = ("a" * 40, "b" * 40)


@pytest.fixture
def hub_cache(tiny_checkpoint, tmp_path, monkeypatch):
    """The hub's cache on disk, with two commits of `someone/tiny`; `main` points to the first."""
    repository = tmp_path / "hub" / "models--someone--tiny"
    for commit in COMMITS:
        shutil.copytree(tiny_checkpoint, repository / "snapshots" / commit)
    change_last_byte(repository / "snapshots" / COMMITS[1] / UNET_WEIGHTS)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMITS[0])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return repository


def test_a_hub_id_is_found_in_the_cache_with_its_commit(hub_cache, tiny_checkpoint):
    main = find_checkpoint("someone/tiny")
    other = find_checkpoint("someone/tiny", revision=COMMITS[1])
    assert (main.revision, other.revision) == COMMITS
    assert main.fingerprint == find_checkpoint(str(tiny_checkpoint)).fingerprint != other.fingerprint


def test_the_commit_of_a_hub_id_is_asked_for_unless_it_is_one():
    asked = []

    def lookup(source, revision):
        asked.append((source, revision))
        return COMMITS[1]

    assert hub_revision("someone/tiny", lookup=lookup) == COMMITS[1]
    assert hub_revision("someone/tiny", revision="v2", lookup=lookup) == COMMITS[1]
    assert hub_revision("someone/tiny", revision=COMMITS[0], lookup=lookup) == COMMITS[0]
    assert asked == [("someone/tiny", None), ("someone/tiny", "v2")]


@pytest.mark.parametrize("source", ["someone/tiny", "no id at all"])
@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_that_cannot_be_reached_is_one_line_with_the_cure(source, offline, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        WeightsNotFoundError, match=r"the revision `main` of .* Hugging Face hub\. Check the id"
    ) as caught:
        hub_revision(source)
    assert "\n" not in str(caught.value)


def test_a_loaded_pipeline_is_quiet_whole_and_of_the_asked_dtype(tiny_checkpoint, capfd):
    pipeline = load_pipeline(find_checkpoint(str(tiny_checkpoint)), dtype="float32", device="cpu")
    assert type(pipeline).__name__ == "StableDiffusionPipeline"
    assert pipeline.safety_checker is None
    assert {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {torch.float32}
    assert pipeline.device == torch.device("cpu")
    layers = [name for name, _ in pipeline.unet.named_modules() if name.endswith("attn2.to_v") and "up" not in name]
    assert len(layers) == 7
    assert capfd.readouterr().out == ""


def test_a_named_device_stays_and_auto_is_one_that_exists():
    assert choose_device("cpu") == "cpu"
    with pytest.raises(
        InputError, match=r"^Expected the device `cuda:99`, but got .* in this machine\. Set `device: cpu`"
    ):
        choose_device("cuda:99")
    assert torch.zeros(1, device=choose_device("auto")).item() == 0


def test_the_index_itself_belongs_to_the_fingerprint(copy):
    before = find_checkpoint(str(copy)).fingerprint
    index = json.loads((copy / "model_index.json").read_text())
    index["requires_safety_checker"] = True
    (copy / "model_index.json").write_text(json.dumps(index, indent=2))
    assert find_checkpoint(str(copy)).fingerprint != before
