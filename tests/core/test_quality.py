"""Image quality, diversity and side effects: right where they can be measured, a reason where not."""

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image, ImageFilter
from skimage import data

from fbmem_core.errors import InputError
from fbmem_core.evaluation.quality import Clip, QualityRow, diversity, measure_quality, side_effect


@pytest.fixture(scope="module")
def photo():
    return Image.fromarray(data.coffee())


def noise(seed, size=64, blur=2):
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(blur))


def tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255


def test_without_images_nothing_is_measured():
    assert measure_quality("brisque", []) == QualityRow("brisque", None, None, 0, "no images")


@pytest.mark.parametrize("metric", ["dbcnn", "qalign"])
def test_what_cannot_be_measured_is_a_row_with_its_reason(metric):
    row = measure_quality(metric, [noise(0)])
    assert (row.metric, row.value, row.stddev, row.num_images) == (metric, None, None, 0)
    assert row.status.startswith("not measured: ")
    assert "pyiqa" in row.status


def test_clip_alignment_is_the_cosine_of_image_and_prompt(tmp_path):
    torch.manual_seed(0)
    network = open_clip.create_model("RN50-quickgelu", pretrained=None).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    images, prompts = [noise(0), noise(1)], ["a cat", "a dog on a hill"]
    _, _, transform = open_clip.create_model_and_transforms("RN50-quickgelu", pretrained=None)
    with torch.no_grad():
        seen = network.encode_image(torch.stack([transform(image) for image in images]))
        read = network.encode_text(open_clip.get_tokenizer("RN50-quickgelu")(prompts))
    expected = torch.cosine_similarity(seen, read)
    row = measure_quality("clip", images, prompts, clip=Clip("RN50-quickgelu", str(tmp_path / "weights.pt")))
    assert (row.num_images, row.status) == (2, "measured")
    assert row.value == pytest.approx(expected.mean().item(), abs=1e-5)
    assert row.stddev == pytest.approx(expected.std().item(), abs=1e-5)


def test_clip_without_weights_or_prompts_says_so():
    row = measure_quality("clip", [noise(0)], ["a cat"], clip=Clip("RN50", "nowhere"))
    assert row.status.startswith("not measured: Expected the weights `nowhere`")
    assert row.value is None
    assert "prompts of the images" in measure_quality("clip", [noise(0)]).status


def test_wrong_arguments_are_one_clear_line():
    with pytest.raises(InputError, match="Expected 1 prompts, one an image, but got 2"):
        measure_quality("clip", [noise(0)], ["a", "b"])
    with pytest.raises(InputError, match="but got `beauty` in the metrics"):
        measure_quality("beauty", [noise(0)])
    with pytest.raises(InputError, match="at least two images"):
        diversity([noise(0)])


def test_diversity_is_nothing_for_copies_and_grows_with_different_images():
    same, near, other = noise(0), noise(0, blur=2.2), noise(1)
    assert diversity([same, same, same]) == pytest.approx(0, abs=1e-5)
    assert 0 < diversity([same, near]) < diversity([same, other]) <= 1
    both = (diversity([same, near]) + diversity([same, other]) + diversity([near, other])) / 3
    assert diversity([same, near, other]) == pytest.approx(both, abs=1e-5)


def test_side_effects_are_matched_by_key():
    images = {("p", 1): noise(1), ("p", 0): noise(0), ("q", 0): noise(2)}
    unmitigated = {("p", 0): noise(0), ("p", 1): noise(5), ("r", 0): noise(2)}
    found = side_effect(images, unmitigated)
    assert list(found) == [("p", 1), ("p", 0)]
    assert found["p", 0] == pytest.approx(1, abs=1e-5)
    assert found["p", 1] < 0.5
    assert side_effect(images, {}) == {}
