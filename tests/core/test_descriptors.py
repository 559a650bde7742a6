"""Descriptors: one file each, made by name of a file of weights."""

import pytest
import timm
import torch

from fbmem_core.errors import InputError, WeightsNotFoundError
from fbmem_core.retrieval import descriptors
from fbmem_core.retrieval.descriptors import DESCRIPTORS, describe, load_descriptor
from fbmem_core.retrieval.descriptors.dino import Dino

TINY = "vit_tiny_patch16_224"
NEW_DESCRIPTOR = '''"""Mean colours of a grid."""

import torch


class Colors:
    name, fill, device = "colors", (0.5, 0.5, 0.5), "cpu"

    def __call__(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


def from_file(weights, *, device="cpu"):
    return Colors()
'''


@pytest.fixture(scope="module")
def tiny_weights(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("dino") / "tiny.pth"
    torch.save(timm.create_model(TINY, pretrained=False, num_classes=0, img_size=64).state_dict(), file)
    return file


def test_dino_gives_the_networks_class_token_and_says_which_weights(tiny_weights):
    descriptor = Dino(tiny_weights, model=TINY, input_size=64)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    vectors = describe(descriptor, images)
    assert vectors.shape == (2, 192)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(2), atol=1e-5)
    assert descriptor.name.startswith(f"{TINY}@")
    assert torch.equal(vectors, describe(Dino(tiny_weights, model=TINY, input_size=64), images))


def test_weights_of_another_network_are_one_line(tiny_weights):
    with pytest.raises(InputError, match="Expected weights of timm's vit_small_patch14_dinov2"):
        load_descriptor("dino", tiny_weights)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(WeightsNotFoundError, match=r"DINOv2 weights.*no\.pth"):
        load_descriptor("dino", tmp_path / "no.pth")


def test_what_is_made_of_a_pipeline_takes_no_file(tmp_path):
    with pytest.raises(InputError, match="a descriptor that is made of a file, but got `latents`"):
        load_descriptor("latents", tmp_path / "x.pt")


def test_only_visible_pixels_matter(tiny_weights):
    descriptor = Dino(tiny_weights, model=TINY, input_size=64)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    visible = torch.zeros(1, 1, 64, 64)
    visible[..., 20:40, 20:40] = 1
    changed = images * visible + 0.1 * (1 - visible)
    assert torch.allclose(describe(descriptor, images, visible), describe(descriptor, changed, visible), atol=1e-6)
    assert not torch.allclose(describe(descriptor, images), describe(descriptor, changed), atol=1e-3)


def test_a_new_descriptor_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "colors.py").write_text(NEW_DESCRIPTOR, encoding="utf-8")
    monkeypatch.setattr(descriptors, "__path__", [*descriptors.__path__, str(tmp_path)])
    monkeypatch.setattr(descriptors, "DESCRIPTORS", (*DESCRIPTORS, "colors"))
    vectors = describe(load_descriptor("colors", tmp_path / "none"), torch.rand(3, 3, 8, 8))
    assert vectors.shape == (3, 12)
