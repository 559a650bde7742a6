"""Audit files: what is accepted, and one-line errors that name file, key and cure."""

from pathlib import Path

import pytest
import yaml

from fbmem_core.audit.config import Audit
from fbmem_core.audit.file import dump_audit, load_audit
from fbmem_core.errors import InputError

SHIPPED = sorted((Path(__file__).parents[2] / "data" / "audits").glob("*.yaml"))
MINIMAL = {"name": "mine", "checkpoint": "model", "prompts": "prompts.csv", "references": "references"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "references").mkdir()
    (tmp_path / "prompts.csv").write_text("prompt\na cat\n")
    (tmp_path / "truth.csv").write_text("prompt_id,kind,label,reference_ids\n")
    (tmp_path / "segmenter.onnx").write_bytes(b"")
    return tmp_path


def write(folder, changes=None, **more):
    data = {**MINIMAL, **(changes or {}), **more}
    path = folder / "audit.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in data.items() if value != "absent"}))
    return path


def error_of(path):
    with pytest.raises(InputError) as caught:
        load_audit(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def test_a_minimal_audit_has_the_values_of_the_paper(folder):
    audit = load_audit(write(folder))
    assert audit.model_dump(mode="json") == {
        "name": "mine",
        "checkpoint": str(folder / "model"),
        "revision": None,
        "config": None,
        "adapters": [],
        "prompts": str(folder / "prompts.csv"),
        "references": str(folder / "references"),
        "truth": None,
        "twin": None,
        "policy": None,
        "samples_per_prompt": 5,
        "samples_by_kind": {},
        "allow_pickle": False,
        "sampling": {
            "steps": 50,
            "guidance_scale": 7.5,
            "guidance_rescale": 0.0,
            "negative_prompt": "",
            "seed": 0,
            "height": 512,
            "width": 512,
            "dtype": "auto",
            "device": "auto",
            "batch_size": 8,
            "compile": False,
            "channels_last": False,
        },
        "segmentation": {"model": "birefnet-general"},
        "similarity": {
            "size": 512,
            "masking": ["masked"],
            "rule": ["per_region"],
            "tau": 0.8,
            "beta": 0.03,
            "top_k": 5,
            "floor": None,
            "device": "auto",
            "alignment": "fast",
            "prefilter": "none",
            "descriptor_weights": None,
            "num_candidates": 1000,
            "num_checked": 20,
            "sscd": None,
            "sscd_threshold": 0.75,
        },
        "thresholds": {"rate": 0.01, "num_controls": 400, "non_memorized_kinds": [], "held_out": None},
        "robustness": {"num_images": 24},
        "agreement": {"num_steps": 7, "num_seeds": 10, "threshold": 0.75},
        "detection": {
            "detectors": ["wen", "sail", "anisotropy", "seed_agreement"],
            "num_seeds": 4,
            "num_calibration_prompts": 40,
        },
        "clusters": {
            "encoder": "pipeline",
            "count": 12,
            "seed": 1,
            "counts": [4, 8, 12, 16, 24],
            "model": "ViT-B-32",
            "weights": "laion2b_s34b_b79k",
        },
        "neurons": {
            "non_memorized_prompts": None,
            "layers": "released",
            "mode": "paper",
            "num_seeds": 10,
            "num_steps": 50,
            "num_threshold_prompts": 100,
            "threshold": None,
            "seed_margin": None,
            "search": "groups",
            "batch_size": 16,
        },
        "mitigations": {
            "methods": [],
            "samples_per_prompt": None,
            "attacks": [],
            "num_attacked": None,
            "attempts": 2,
            "num_neighbors": 5,
            "held_out": None,
        },
        "quality": {"metrics": ["clip"]},
        "diff": {"max_rise": 0.02, "significance": 0.05},
    }


def test_paths_are_relative_to_the_file_and_not_to_the_working_directory(folder, monkeypatch):
    below = folder / "below"
    below.mkdir()
    monkeypatch.chdir(below)
    path = write(folder, truth="truth.csv", segmentation={"model": "./segmenter.onnx"})
    audit = load_audit(path)
    assert audit.truth == folder / "truth.csv"
    assert audit.segmentation.model == str(folder / "segmenter.onnx")


def test_absolute_paths_stay(folder):
    audit = load_audit(write(folder, prompts=str(folder / "prompts.csv"), checkpoint=str(folder / "model")))
    assert (audit.prompts, audit.checkpoint) == (folder / "prompts.csv", str(folder / "model"))


def test_a_hub_id_is_left_for_the_hub(folder):
    audit = load_audit(write(folder, checkpoint="runwayml/stable-diffusion-v1-5", revision="main"))
    assert (audit.checkpoint, audit.revision) == ("runwayml/stable-diffusion-v1-5", "main")


def test_a_directory_that_looks_like_a_hub_id_is_a_directory(folder):
    (folder / "models" / "mine").mkdir(parents=True)
    assert load_audit(write(folder, checkpoint="models/mine")).checkpoint == str(folder / "models" / "mine")


def test_an_empty_section_has_its_defaults(folder):
    audit = load_audit(write(folder, sampling=None, similarity=None, truth=None))
    assert (audit.sampling.steps, audit.similarity.size, audit.truth) == (50, 512, None)


def test_one_region_or_rule_needs_no_list(folder):
    audit = load_audit(write(folder, similarity={"masking": "composite", "rule": "released"}))
    assert (audit.similarity.masking, audit.similarity.rule) == (["composite"], ["released"])


@pytest.mark.parametrize(
    ("similarity", "lowest"),
    [
        ({}, 0.6),
        ({"tau": 0.5}, 0.3),
        ({"tau": 0.1}, 0.0),
        ({"floor": 0.25}, 0.25),
        ({"floor": 0}, 0.0),
        ({"tau": 0.7, "floor": 0.7}, 0.7),
        ({"floor": None}, 0.6),
    ],
    ids=str,
)
def test_the_floor_is_a_little_below_tau_and_never_below_0_unless_the_file_says_otherwise(folder, similarity, lowest):
    assert load_audit(write(folder, similarity=similarity)).similarity.lowest == pytest.approx(lowest)


@pytest.mark.parametrize("device", ["auto", "cpu", "mps", "cuda", "cuda:1"])
def test_the_comparison_has_a_device_of_its_own(folder, device):
    audit = load_audit(write(folder, similarity={"device": device}))
    assert (audit.similarity.device, audit.sampling.device) == (device, "auto")


def test_each_prompt_has_consecutive_seeds_as_many_as_its_kind_asks_for(folder):
    audit = load_audit(write(folder, samples_per_prompt=2, samples_by_kind={"VM": 4}, sampling={"seed": 10}))
    assert (audit.seeds("VM"), audit.seeds("TM"), audit.seeds(None)) == (range(10, 14), range(10, 12), range(10, 12))


def test_a_dumped_audit_is_read_back_the_same(folder):
    audit = load_audit(write(folder, similarity={"size": 176}, samples_by_kind={"VM": 4}))
    assert Audit.model_validate_json(dump_audit(audit)) == audit


def test_an_audit_cannot_be_changed(folder):
    with pytest.raises(ValueError, match="frozen"):
        load_audit(write(folder)).name = "other"


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({1: "one"}, ["Expected 1 Keys to be strings", "Change `1`."]),
        (
            {"promts": "x"},
            [
                "only known keys (adapters, agreement, allow_pickle, checkpoint,",
                "but got `promts`",
                "Remove or rename it.",
            ],
        ),
        (
            {"sampling": {"step": 3}},
            [
                "only known keys (batch_size, channels_last, compile, device,",
                "but got `sampling.step`",
                "Remove or rename it.",
            ],
        ),
        ({"name": "absent"}, ["the key `name`", "Add `name:`."]),
        ({"checkpoint": "absent"}, ["the key `checkpoint`", "Add `checkpoint:`."]),
        ({"prompts": None}, ["the key `prompts`", "Add `prompts:`."]),
        ({"name": "Mine!"}, ["Expected name", "but got `Mine!`", "Change `name`."]),
        ({"samples_per_prompt": 0}, ["Expected samples_per_prompt to be greater than or equal to 1", "but got `0`"]),
        ({"samples_by_kind": {"VM": 0}}, ["Expected samples_by_kind.VM to be greater", "Change `samples_by_kind.VM`."]),
        ({"sampling": {"steps": "many"}}, ["Expected sampling.steps to be a valid integer", "but got `many`"]),
        ({"sampling": {"height": 500}}, ["Expected sampling.height to be a multiple of 8", "but got `500`"]),
        ({"sampling": {"seed": 2**32}}, ["Expected sampling.seed to be less than 4294967296", "but got `4294967296`"]),
        (
            {"sampling": {"dtype": "int8"}},
            ["Expected sampling.dtype to be 'auto', 'float32'", "Change `sampling.dtype`."],
        ),
        ({"sampling": {"device": "gpu"}}, ["Expected sampling.device", "but got `gpu`"]),
        ({"sampling": 5}, ["Expected sampling to be a valid dictionary", "but got `5`", "Change `sampling`."]),
        ({"sampling": {"guidance_scale": float("nan")}}, ["Expected sampling.guidance_scale", "but got `nan`"]),
        ({"similarity": {"size": 160}}, ["Expected similarity.size to be greater than or equal to 161", "`160`"]),
        ({"similarity": {"tau": 1.5}}, ["Expected similarity.tau to be less than or equal to 1", "`1.5`"]),
        ({"similarity": {"floor": 0.9}}, ["Expected similarity.floor to be at most tau (0.8)", "`0.9`", "Change `sim"]),
        ({"similarity": {"tau": 0.5, "floor": 0.6}}, ["similarity.floor to be at most tau (0.5)", "`0.6`"]),
        ({"similarity": {"floor": -0.1}}, ["Expected similarity.floor to be greater than or equal to 0", "`-0.1`"]),
        ({"similarity": {"floor": 1.5}}, ["Expected similarity.floor to be less than or equal to 1", "`1.5`"]),
        ({"similarity": {"device": "gpu"}}, ["Expected similarity.device", "`gpu`", "Change `similarity.device`."]),
        ({"similarity": {"beta": 0.5}}, ["Expected similarity.beta to be less than 0.5", "`0.5`"]),
        ({"similarity": {"masking": "mask"}}, ["similarity.masking.0 to be 'masked' or 'composite'", "`mask`"]),
        ({"similarity": {"rule": []}}, ["Expected similarity.rule", "at least 1 item", "Change `similarity.rule`."]),
        ({"prompts": "no.csv"}, ["Expected prompts to be an existing path", "`no.csv`", "Mend `prompts`: paths are"]),
        ({"references": "no"}, ["Expected references to be an existing path", "`no`", "Mend `references`"]),
        ({"truth": "no.csv"}, ["Expected truth to be an existing path", "`no.csv`", "Mend `truth`"]),
        (
            {"checkpoint": "./nowhere"},
            ["Expected checkpoint to be a diffusers directory", "`./nowhere`", "Mend `checkpoint`", "owner/name"],
        ),
        ({"checkpoint": "nowhere"}, ["Expected checkpoint to be a diffusers directory", "`nowhere`"]),
        ({"checkpoint": "prompts.csv"}, ["Expected checkpoint to be a diffusers directory", "`prompts.csv`"]),
        (
            {"segmentation": {"model": "no.onnx"}},
            ["Expected segmentation.model to be an existing file", "`no.onnx`", "Mend `segmentation.model`"],
        ),
        (
            {"neurons": {"non_memorized_prompts": "none.txt"}},
            ["Expected neurons.non_memorized_prompts to be an existing file", "`none.txt`", "Mend `neurons."],
        ),
        ({"clusters": {"encoder": "bert"}}, ["clusters.encoder", "`bert`", "Change `clusters.encoder`."]),
    ],
    ids=str,
)
def test_an_unusable_audit_is_one_line_that_names_file_key_and_cure(folder, changes, fragments):
    text = error_of(write(folder, changes))
    for fragment in fragments:
        assert fragment in text


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        (b"name: [1, 2", ["text that is no YAML", "Mend it."]),
        (b"name: a\n\tprompts: b\n", ["text that is no YAML", "Mend it."]),
        (b"name: \xff\xfe", ["text that is no YAML", "Mend it."]),
        (b"!!python/object:os.system {}", ["text that is no YAML", "Mend it."]),
        (b"- name\n- prompts\n", ["a YAML mapping, but got list", "Write keys such as `name:`."]),
        (b"just text", ["a YAML mapping, but got str", "Write keys such as `name:`."]),
        (b"", ["a YAML mapping, but got NoneType", "Write keys such as `name:`."]),
    ],
)
def test_a_file_that_is_no_mapping_is_one_line_that_names_file_and_cure(tmp_path, content, fragments):
    path = tmp_path / "audit.yaml"
    path.write_bytes(content)
    text = error_of(path)
    for fragment in fragments:
        assert fragment in text


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_missing_audit_file_is_named_with_the_cure(tmp_path, name):
    text = error_of(tmp_path / name)
    assert "Expected an audit file, but got no such file" in text
    assert text.endswith("Give the path of a YAML audit file.")


def test_mitigations_are_named_with_their_options(folder):
    methods = ["nemo", {"method": "nemo_c", "name": "damped", "options": {"factor": 0.1}, "num_clusters": 3}]
    audit = load_audit(write(folder, mitigations={"methods": methods}))
    assert [(spec.title, spec.method, spec.options) for spec in audit.mitigations.methods] == [
        ("nemo", "nemo", {}),
        ("damped", "nemo_c", {"factor": 0.1}),
    ]


def test_strengths_and_draws_make_a_series_of_a_mitigation(folder):
    methods = [
        {"method": "nemo_c", "strengths": [0.5, 0]},
        {"method": "random", "options": {"like": "nemo_c"}, "draws": 2},
        {"method": "wanda", "strengths": "default"},
    ]
    trials = load_audit(write(folder, mitigations={"methods": methods})).mitigations.trials()
    assert [(trial.title, trial.options, trial.strength, trial.draw) for trial in trials[:4]] == [
        ("nemo_c@0.5", {"factor": 0.5}, 0.5, None),
        ("nemo_c@0", {"factor": 0.0}, 0.0, None),
        ("random@0", {"like": "nemo_c", "seed": 0}, None, 0),
        ("random@1", {"like": "nemo_c", "seed": 1}, None, 1),
    ]
    assert [trial.strength for trial in trials[4:]] == [0.0025, 0.005, 0.01, 0.02, 0.05]
    assert {trial.config.title for trial in trials[4:]} == {"wanda"}


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (["hope"], "one of clean_twin, fade, initial_noise, nemo, nemo_c, padding, random, sail, wanda, wen"),
        ([{"method": "nemo", "options": {"factor": 2}}], "`factor` less than or equal to 1"),
        ([{"method": "sail", "options": {"max_steps": "ten"}}], "`max_steps` a valid integer"),
        ([{"method": "nemo", "strengths": [0.5, 2]}], "`factor` less than or equal to 1"),
        ([{"method": "clean_twin", "strengths": "default"}], "no `strengths`"),
        ([{"method": "nemo", "draws": 2}], "no `draws`"),
        ([{"method": "nemo", "options": {"force": 1}}], "no option `force` (factor)"),
        (["nemo", "nemo"], "different names"),
        ([{"method": "nemo", "name": "none"}], "different names"),
    ],
)
def test_a_mitigation_that_cannot_be_tried_is_one_line(folder, methods, message):
    assert message in error_of(write(folder, mitigations={"methods": methods}))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_the_shipped_audit_files_are_valid_and_named_by_their_audits(file):
    assert load_audit(file).name == file.stem


def test_the_audit_file_of_make_audit_ships():
    assert "canary" in [file.stem for file in SHIPPED]
