"""The whole graph with the model on another device than the CPU: an emulated one, whose tensors refuse to mix."""

import pytest
import torch
import yaml
from click.testing import CliRunner

from fbmem_core.audit.results import _load, open_audit
from fbmem_core.diffusion import loading
from tests.second_device import DEVICE, ordinary_devices, second_device

METHODS = ["nemo", "nemo_c", "random", {"method": "fade", "options": {"num_non_memorized": 20, "num_steps": 1}},
           {"method": "wanda"}, {"method": "wen", "options": {"num_non_memorized": 20, "max_steps": 1}}]  # fmt: skip


@pytest.fixture
def model_elsewhere(monkeypatch):
    """Pipelines are loaded as always and then moved."""
    load = loading.load_pipeline

    def load_and_move(checkpoint, **settings):
        with ordinary_devices():  # loading has a use of its own for the device `meta`
            pipeline = load(checkpoint, **{**settings, "device": "cpu"})
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            part.to(DEVICE)
        return pipeline

    monkeypatch.setattr(loading, "load_pipeline", load_and_move)


def test_tensors_of_two_devices_do_not_mix():
    with second_device():
        there = torch.tensor([1.0, 2.0], device=DEVICE)
        assert (there + 1).cpu().tolist() == [2.0, 3.0]
        assert there.sum().item() == 3.0
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.ones(2)
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()


@pytest.mark.slow
def test_every_stage_runs_with_the_model_on_the_second_device(tiny_audit, tmp_path, model_elsewhere, monkeypatch):
    from fbmem_assets.commands.main import main

    audit = yaml.safe_load(tiny_audit.read_text())
    (tiny_audit.parent / "usual.txt").write_text("\n".join(f"drawing {number}" for number in range(20)))
    audit |= {
        "name": "elsewhere",
        "similarity": {"size": 176, "tau": 0.01, "floor": 0.0},  # all are copies
        "agreement": {"num_steps": 1},
        "clusters": {"count": 2, "counts": [2]},
        "neurons": {
            "non_memorized_prompts": "usual.txt", "num_seeds": 2, "num_threshold_prompts": 20, "threshold": 0.02,
        },
        "mitigations": {
            "methods": METHODS, "samples_per_prompt": 1, "num_attacked": 1, "attempts": 1,
            "attacks": ["paraphrase", "adversarial"],
        },
        "quality": {"metrics": ["brisque"]},
    }  # fmt: skip
    file = tiny_audit.parent / "elsewhere.yaml"
    file.write_text(yaml.safe_dump(audit))
    for name in ("DAGSTER_HOME", "FBMEM_DAGSTER", "FBMEM_STORE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    try:
        with second_device():
            result = CliRunner().invoke(main, ["audit", str(file), "--store", str(tmp_path)])
    finally:
        _load.cache_clear()  # the pipeline lies on the second device
    assert result.exit_code == 0, result.stderr
    found = open_audit(tmp_path)
    assert set(found.read("labels")["method"]) == {"none", *(m if isinstance(m, str) else m["method"] for m in METHODS)}
    assert found.read("neurons").height > 0
    assert found.read("attacks").height > 0
