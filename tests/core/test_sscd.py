"""SSCD descriptors, by a small scripted network whose answers can be computed by hand."""

import pytest
import torch

from fbmem_core.errors import InputError, WeightsNotFoundError
from fbmem_core.retrieval.descriptors import describe
from fbmem_core.retrieval.descriptors.sscd import Sscd, sscd_similarity
from tests.conftest import save_torchscript
from tests.core.test_ms_ssim import images, patch

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def test_descriptors_are_those_of_the_network_on_resized_normalised_images(tiny_sscd):
    x = images(1, 3, 320)
    network = Sscd(tiny_sscd)
    with pytest.warns(FutureWarning):
        scripted = torch.jit.load(str(tiny_sscd))
    expected = scripted((x - MEAN) / STD)
    expected = expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(describe(network, x), expected, atol=1e-5, rtol=0)


def test_the_name_says_which_network_and_which_preprocessing(tiny_sscd):
    name = Sscd(tiny_sscd, input_size=288).name
    assert name.startswith("tiny_sscd.pt@")
    assert name.endswith(", 288x288, ImageNet normalisation")


def test_a_region_is_all_that_the_network_sees(tiny_sscd):
    network, alpha = Sscd(tiny_sscd), patch(40, 40, 90, 90)
    x, y = images(1), images(2)
    copied = x * alpha + y * (1 - alpha)
    similarity = sscd_similarity(network, x, copied, alpha, alpha)
    assert similarity.foreground.item() == pytest.approx(1, abs=1e-5)
    assert similarity.background.item() < 0.999
    assert similarity.full.item() < 0.999
    assert sscd_similarity(network, x, x, alpha, alpha).average.item() == pytest.approx(1, abs=1e-5)


def test_a_missing_file_is_named_with_the_cure(tmp_path):
    with pytest.raises(WeightsNotFoundError, match=r"an SSCD network.*no\.pt.*Download"):
        Sscd(tmp_path / "no.pt")


def test_a_file_that_is_no_torchscript_is_refused(tmp_path):
    (tmp_path / "page.pt").write_text("<html>404</html>")
    with pytest.raises(InputError, match=r"a TorchScript file, but got .* in .*page\.pt\. Download it anew"):
        Sscd(tmp_path / "page.pt")


def test_a_network_without_vectors_is_refused(tmp_path):
    save_torchscript(torch.nn.ReLU(), tmp_path / "relu.pt")
    with pytest.raises(InputError, match=r"\[n, d\] descriptors, but got \(1, 3, 320, 320\)"):
        Sscd(tmp_path / "relu.pt")
