"""Mattes: what rembg's stretching hides, shown by networks whose answers are known."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from fbmem_core.canary.pictures import draw, random_public_picture
from fbmem_core.errors import InputError, WeightsNotFoundError
from fbmem_core.inputs.segmentation import Matte, Segmenter, segmenter_name

PROJECT = Path(__file__).parents[2]
SEED_OF_NO_TRAINING = 2026  # training seeds its generators with (stage, step)
SIDE = 320
LEFT = np.zeros((SIDE, SIDE), dtype=np.float32)
LEFT[:, : SIDE // 2] = 1


def write_network(path, answer):
    """An ONNX file with U2-Net's interface that gives `answer` for every image."""
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, SIDE, SIDE])
    coverage = helper.make_tensor_value_info("coverage", TensorProto.FLOAT, [1, 1, SIDE, SIDE])
    value = numpy_helper.from_array(np.asarray(answer, dtype=np.float32).reshape(1, 1, SIDE, SIDE), "answer")
    node = helper.make_node("Identity", ["answer"], ["coverage"])
    graph = helper.make_graph([node], "constant", [image], [coverage], initializer=[value])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return str(path)


def matte_of(tmp_path, answer, size=(SIDE, SIDE)):
    return Segmenter(write_network(tmp_path / "network.onnx", answer)).matte(Image.new("RGB", size, (90, 120, 40)))


def two_valued(low, high):
    return low + (high - low) * LEFT


@pytest.mark.parametrize("value", [0.0, 0.3, 0.5, 1.0, -4.0, np.nan, np.inf])
def test_a_constant_prediction_is_undecided(tmp_path, value):
    matte = matte_of(tmp_path, np.full((SIDE, SIDE), value))
    assert (matte.alpha, matte.status, matte.foreground_fraction) == (None, "undecided", None)


def test_a_prediction_with_a_single_nan_is_undecided(tmp_path):
    answer = two_valued(0.0, 1.0)
    answer[7, 7] = np.nan
    assert matte_of(tmp_path, answer).status == "undecided"


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.1, 0.9), (0.49, 0.5), (-6.0, 6.0), (-0.1, 0.4)])
def test_a_prediction_on_both_sides_of_one_half_is_stretched_to_a_matte(tmp_path, low, high):
    matte = matte_of(tmp_path, two_valued(low, high))
    assert matte.status == "ok"
    assert matte.alpha.dtype == np.float32
    np.testing.assert_array_equal(matte.alpha, LEFT)
    assert matte.foreground_fraction == 0.5


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.4), (0.0, 1e-3), (0.48, 0.49), (-9.0, -3.0)])
def test_a_prediction_below_one_half_everywhere_sees_no_object(tmp_path, low, high):
    matte = matte_of(tmp_path, two_valued(low, high), size=(40, 30))
    assert (matte.status, matte.foreground_fraction) == ("empty", 0.0)
    np.testing.assert_array_equal(matte.alpha, np.zeros((30, 40), dtype=np.float32))


@pytest.mark.parametrize(("low", "high"), [(0.5, 1.0), (0.9, 0.95), (3.0, 9.0)])
def test_a_prediction_from_one_half_up_everywhere_sees_nothing_but_the_object(tmp_path, low, high):
    matte = matte_of(tmp_path, two_valued(low, high), size=(40, 30))
    assert (matte.status, matte.foreground_fraction) == ("full", 1.0)
    np.testing.assert_array_equal(matte.alpha, np.ones((30, 40), dtype=np.float32))


@pytest.mark.parametrize("size", [(64, 64), (50, 81), (640, 400)])
def test_a_matte_has_the_size_of_its_image(tmp_path, size):
    matte = matte_of(tmp_path, two_valued(0.0, 1.0), size=size)
    assert matte.alpha.shape == size[::-1]
    assert matte.foreground_fraction == pytest.approx(0.5, abs=0.02)


def test_a_saved_matte_is_grey_and_white_where_the_foreground_is():
    alpha = np.array([[0, 0.5, 1]], dtype=np.float32)
    image = Matte(alpha, "ok").to_image()
    assert (image.mode, image.size) == ("L", (3, 1))
    assert np.asarray(image).tolist() == [[0, 128, 255]]
    with pytest.raises(ValueError, match="undecided"):
        Matte(None, "undecided").to_image()


def test_a_trained_interface_gives_each_picture_its_own_matte(tiny_segmenter):
    segmenter = Segmenter(str(tiny_segmenter))
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(draw(random_public_picture(generator))[0]) for _ in range(2)]
    first, second = (segmenter.matte(picture) for picture in pictures)
    assert (first.status, second.status) == ("ok", "ok")
    assert first.alpha.shape == (64, 64)
    assert 0 < first.foreground_fraction < 1
    assert np.abs(first.alpha - second.alpha).max() > 0.5
    np.testing.assert_array_equal(segmenter.matte(pictures[0]).alpha, first.alpha)


def test_a_file_is_named_by_its_content_and_a_model_by_its_name(tmp_path):
    path = write_network(tmp_path / "network.onnx", LEFT)
    digest = hashlib.sha256((tmp_path / "network.onnx").read_bytes()).hexdigest()
    assert Segmenter(path).name == segmenter_name(path) == f"network.onnx@{digest[:12]}"
    write_network(tmp_path / "network.onnx", 1 - LEFT)
    assert segmenter_name(path) != f"network.onnx@{digest[:12]}"
    assert segmenter_name("birefnet-general") == "birefnet-general"


def test_the_shipped_network_finds_objects_that_it_was_not_trained_on():
    segmenter = Segmenter(str(PROJECT / "data" / "canary" / "segmenter.onnx"))
    overlaps = []
    for seed in range(20):
        image, coverage = draw(random_public_picture(np.random.default_rng([SEED_OF_NO_TRAINING, seed])))
        alpha = segmenter.matte(Image.fromarray(image)).alpha
        found, true = alpha >= 0.5, coverage >= 0.5
        overlaps.append((found & true).sum() / (found | true).sum())
    assert np.mean(overlaps) >= 0.95
    assert min(overlaps) >= 0.9


def test_an_unknown_model_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"birefnet-general, .*u2net.*but got `birefnet`\. Choose one\."):
        Segmenter("birefnet")


def test_a_missing_file_is_refused_with_the_key_to_mend(tmp_path):
    with pytest.raises(
        InputError, match=r"an ONNX file, but got no such file in .*no\.onnx\. Mend `segmentation.model`"
    ):
        Segmenter(str(tmp_path / "no.onnx"))


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_a_broken_file_is_refused_in_one_line_with_the_cure(tmp_path, tiny_segmenter, keep):
    content = tiny_segmenter.read_bytes()
    path = tmp_path / "broken.onnx"
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(InputError, match=r"a usable ONNX model.*broken\.onnx\. Export it anew\.") as caught:
        Segmenter(str(path))
    assert "\n" not in str(caught.value)


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "page.onnx"
    path.write_text("<html>404 Not Found</html>")
    with pytest.raises(InputError, match="a usable ONNX model"):
        Segmenter(str(path))


def test_weights_that_cannot_be_fetched_are_named_with_the_cure(tmp_path, monkeypatch):
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(WeightsNotFoundError, match=r"the weights of `u2netp`, .* looked in rembg's .*\.onnx file"):
        Segmenter("u2netp")


def test_what_rembg_imports_leaves_torch_the_threads_that_it_had():
    code = (
        "import sys, torch; from fbmem_core.inputs.segmentation import Segmenter\n"
        "before = torch.get_num_threads(); Segmenter(sys.argv[1]); print(before, torch.get_num_threads())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, PROJECT / "data" / "canary" / "segmenter.onnx"],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout.split() == ["1", "1"]
