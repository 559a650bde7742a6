"""Loading: variants, shards, single files and adapters; what was registered and nothing else; settings left open."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file

from fbmem_core.audit.config import Audit
from fbmem_core.audit.settle import settled_audit
from fbmem_core.diffusion.adapters import LoadedAdapter
from fbmem_core.diffusion.checkpoint import Checkpoint, find_checkpoint
from fbmem_core.diffusion.hub import needed_files
from fbmem_core.diffusion.loading import load_pipeline
from fbmem_core.diffusion.pipeline_files import read_pipeline_files
from fbmem_core.diffusion.sampling import Request, sample
from fbmem_core.diffusion.settings import SamplingConfig
from fbmem_core.diffusion.tokens import count_tokens
from fbmem_core.errors import InputError
from tests.tiny_models import make_pipeline

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
SAMPLING = SamplingConfig(steps=2, guidance_scale=3.0, height=64, width=64)


def loaded(directory, **options):
    allow_pickle = options.pop("allow_pickle", False)
    checkpoint = find_checkpoint(str(directory), allow_pickle=allow_pickle, **options)
    return load_pipeline(checkpoint, device="cpu", allow_pickle=allow_pickle)


def drawn(pipeline, prompt="a red circle"):
    [(_, image)] = sample(pipeline, [Request("p", prompt, 0)], SAMPLING)
    return np.asarray(image).astype(int)


@pytest.fixture(scope="module")
def image(tiny_checkpoint):
    return drawn(loaded(tiny_checkpoint))


@pytest.mark.parametrize(
    ("saved", "allow_pickle"),
    [
        ({"variant": "fp16"}, False),
        ({"variant": "fp16", "max_shard_size": "100KB"}, False),
        ({"max_shard_size": "100KB"}, False),
        ({"safe_serialization": False}, True),
    ],
)
def test_what_save_pretrained_writes_is_loaded(tiny_checkpoint, tmp_path, image, saved, allow_pickle):
    loaded(tiny_checkpoint).save_pretrained(tmp_path, **saved)
    assert np.abs(drawn(loaded(tmp_path, allow_pickle=allow_pickle)) - image).max() <= 1


def test_plain_weights_are_taken_before_a_variant_that_lies_beside(tiny_checkpoint, tmp_path):
    pipeline = loaded(tiny_checkpoint)
    pipeline.save_pretrained(tmp_path)
    alone = find_checkpoint(str(tmp_path))
    pipeline.to(torch.float16).save_pretrained(tmp_path.with_name("half"), variant="fp16")
    for path in tmp_path.with_name("half").rglob("*.fp16.safetensors"):
        shutil.copy(path, tmp_path / path.parent.name)
    assert find_checkpoint(str(tmp_path)) == alone
    for path in tmp_path.rglob("*.safetensors"):
        if "fp16" not in path.name:
            path.unlink()
    found = find_checkpoint(str(tmp_path))
    assert (found.variant, found.dtype) == ("fp16", "float16")
    assert loaded(tmp_path).unet.dtype == torch.float32  # a CPU has no speed in float16
    with pytest.raises(InputError, match=r"but got float16, eighty times slower in sampling\.dtype"):
        load_pipeline(found, dtype="float16", device="cpu")


def test_pickles_in_shards_are_refused_at_registration(tiny_checkpoint, tmp_path):
    loaded(tiny_checkpoint).save_pretrained(tmp_path, safe_serialization=False, max_shard_size="100KB")
    with pytest.raises(InputError, match=r"Expected whole pickles of `.*`, but got `.*bin\.index\.json`"):
        find_checkpoint(str(tmp_path), allow_pickle=True)


def test_a_single_file_has_its_configs_beside(tiny_checkpoint, tmp_path):
    path = shutil.copy(tiny_checkpoint / "unet" / "diffusion_pytorch_model.safetensors", tmp_path / "all.safetensors")
    with pytest.raises(InputError, match=r"Expected `config` beside a single file, but got none in .*all\.safetensors"):
        find_checkpoint(str(path))
    configs = shutil.copytree(tiny_checkpoint, tmp_path / "configs", ignore=shutil.ignore_patterns("*.safetensors"))
    found = find_checkpoint(str(path), config=configs)
    assert (found.single_file, found.architecture) == (path, "StableDiffusionPipeline")
    with pytest.raises(InputError, match="Expected weights that StableDiffusionPipeline loads, but got Failed to load"):
        load_pipeline(found, device="cpu")  # it holds no text encoder


def test_weights_that_changed_since_they_were_registered_are_not_loaded(tiny_checkpoint, tmp_path):
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    checkpoint = find_checkpoint(str(copy))
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError, match=r"Expected the weights that were registered \([0-9a-f]{12}\), but got others"):
        load_pipeline(checkpoint, device="cpu")


def test_a_lora_changes_weights_and_fingerprint_and_nothing_at_weight_0(tiny_checkpoint, tmp_path, image):
    pipeline = loaded(tiny_checkpoint)
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["to_v"], init_lora_weights=False)
    pipeline.unet.add_adapter(config)
    type(pipeline).save_lora_weights(tmp_path, unet_lora_layers=get_peft_model_state_dict(pipeline.unet))
    [path] = tmp_path.glob("*.safetensors")
    whole, none = (LoadedAdapter(path, weight=weight) for weight in (1.0, 0.0))
    changed = loaded(tiny_checkpoint, adapters=[whole])
    assert np.abs(drawn(changed) - image).max() > 1
    assert not any("lora" in name or "base_layer" in name for name, _ in changed.unet.named_parameters())
    assert np.abs(drawn(loaded(tiny_checkpoint, adapters=[none])) - image).max() <= 1
    prints = {find_checkpoint(str(tiny_checkpoint), adapters=some).fingerprint for some in ([], [whole], [none])}
    assert len(prints) == 3


def test_a_textual_inversion_adds_its_token(tiny_checkpoint, tmp_path):
    base = loaded(tiny_checkpoint)
    path = tmp_path / "owl.safetensors"
    save_file({"<owl>": 5 * torch.randn(base.text_encoder.config.hidden_size)}, path)
    adapted = loaded(tiny_checkpoint, adapters=[LoadedAdapter(path, kind="textual_inversion")])
    assert len(adapted.tokenizer) == len(base.tokenizer) + 1
    assert np.abs(drawn(adapted, "a red <owl>") - drawn(base, "a red <owl>")).max() > 1


def test_a_checkpoint_is_the_same_after_it_was_recorded():
    adapter = LoadedAdapter(Path("a.safetensors"), weight=0.5)
    checkpoint = Checkpoint("x", Path("d"), "0" * 64, "FluxPipeline", single_file=Path("f"), adapters=(adapter,))
    from dataclasses import asdict

    assert Checkpoint.from_record(json.loads(json.dumps(asdict(checkpoint), default=str))) == checkpoint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("inpaint", "Expected a text-to-image pipeline, but got StableDiffusionInpaintPipeline"),
        ("controlnet", "Expected a text-to-image pipeline, but got StableDiffusionControlNetPipeline"),
        ("channels", "Expected a U-Net of 4 input channels, but got 9"),
        ("scheduler", "Expected a scheduler of .*, but got EDMEulerScheduler"),
        ("noise", "Expected v_prediction with zero terminal SNR, but got epsilon"),
    ],
)
def test_what_cannot_be_audited_is_refused_when_it_is_registered(tiny_checkpoint, tmp_path, name, message):
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    changes = {
        "inpaint": ("model_index.json", {"_class_name": "StableDiffusionInpaintPipeline"}),
        "controlnet": ("model_index.json", {"_class_name": "StableDiffusionControlNetPipeline"}),
        "channels": ("unet/config.json", {"in_channels": 9}),
        "scheduler": ("scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler"}),
        "noise": ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}),
    }
    file, change = changes[name]
    (copy / file).write_text(json.dumps(json.loads((copy / file).read_text()) | change))
    with pytest.raises(InputError, match=message):
        find_checkpoint(str(copy))


def test_stable_diffusion_3_may_lack_its_third_text_encoder(tmp_path):
    make_pipeline("sd3").save_pretrained(tmp_path)
    for name in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(tmp_path / name)
    assert read_pipeline_files(tmp_path).missing == {"text_encoder_3", "tokenizer_3"}
    assert loaded(tmp_path).text_encoder_3 is None


def test_what_a_file_leaves_open_is_as_the_pipeline_recommends(tiny_checkpoint, tmp_path):
    checkpoint = find_checkpoint(str(tiny_checkpoint))
    keys = {"name": "a", "checkpoint": str(tiny_checkpoint), "prompts": "p", "references": "r"}
    settled = settled_audit(Audit.model_validate({**keys, "sampling": {"steps": 7}}), checkpoint).sampling
    assert (settled.steps, settled.guidance_scale, settled.height, settled.width) == (7, 7.5, 64, 64)
    assert settled.dtype == "float32"
    flux = Checkpoint("x", tmp_path, "0" * 64, "FluxPipeline")
    assert settled_audit(Audit.model_validate(keys), flux).sampling.guidance_scale == 3.5
    with pytest.raises(InputError, match=r"settings that FluxPipeline takes, but got `sampling\.negative_prompt`"):
        settled_audit(Audit.model_validate({**keys, "sampling": {"negative_prompt": "blur"}}), flux)


def test_of_the_hub_no_more_is_fetched_than_is_loaded():
    names = [
        "model_index.json", "all-in-one.safetensors", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.non_ema.safetensors",
        "unet/diffusion_pytorch_model.bin", "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
        "safety_checker/config.json", "safety_checker/model.safetensors", "tokenizer/vocab.json", "README.md",
    ]  # fmt: skip
    index = {name: ["diffusers", "X"] for name in ("unet", "vae", "tokenizer", "safety_checker")}
    assert needed_files(names, index, allow_pickle=False) == [
        "model_index.json", "tokenizer/vocab.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip


def test_prompts_are_counted_in_the_tokens_of_the_encoder(tiny_checkpoint):
    prompts = ["a cat", "a cat " * 60]
    [short, long], limit = count_tokens(tiny_checkpoint, "StableDiffusionPipeline", prompts)
    assert short < limit < long
