"""Sampling: an image depends on its prompt and seed, never on what is sampled beside it."""

from contextlib import contextmanager
from itertools import groupby

import numpy as np
import pytest
import torch

from fbmem_core.audit.config import SamplingConfig
from fbmem_core.diffusion.checkpoint import find_checkpoint
from fbmem_core.diffusion.loading import load_pipeline
from fbmem_core.diffusion.sampling import UNUSABLE, Request, content_key, sample
from fbmem_core.errors import InputError

SAMPLING = SamplingConfig(steps=3, guidance_scale=3.0, height=64, width=64, batch_size=4)
REQUESTS = [
    Request(f"p{number}", prompt, seed)
    for number, prompt in enumerate(["a red circle on blue stripes", "", "clockwork owl poster"])
    for seed in (0, 2**32 - 1)
]


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint):
    return load_pipeline(find_checkpoint(str(tiny_checkpoint)), dtype="float32", device="cpu")


def pixels(pipeline, requests, sampling=SAMPLING):
    return {request: np.asarray(image).astype(int) for request, image in sample(pipeline, requests, sampling)}


@pytest.fixture(scope="module")
def together(pipeline):
    return pixels(pipeline, REQUESTS)


def test_every_request_comes_back_in_order_with_an_image_of_the_asked_size(pipeline):
    sampled = list(sample(pipeline, REQUESTS, SAMPLING))
    assert [request for request, _ in sampled] == REQUESTS
    assert {(image.mode, image.size) for _, image in sampled} == {("RGB", (64, 64))}


def test_an_image_is_the_same_alone_and_in_any_batch(pipeline, together):
    alone = pixels(pipeline, REQUESTS, SAMPLING.model_copy(update={"batch_size": 1}))
    shuffled = pixels(pipeline, REQUESTS[::-1], SAMPLING.model_copy(update={"batch_size": 5}))
    for request in REQUESTS:
        assert np.abs(alone[request] - together[request]).max() <= 1
        assert np.abs(shuffled[request] - together[request]).max() <= 1


def test_sampling_again_gives_exactly_the_same_images(pipeline, together):
    again = pixels(pipeline, REQUESTS)
    assert all((again[request] == together[request]).all() for request in REQUESTS)


def test_another_seed_gives_another_image(together):
    one, other = (together[request] for request in REQUESTS[:2])
    assert one.std() > 1
    assert np.abs(one - other).mean() > 1


def test_consecutive_seeds_up_to_the_highest_one_give_different_images(pipeline):
    requests = [Request("p", "a cat", seed) for seed in (0, 1, 2**31, 2**32 - 2, 2**32 - 1)]
    images = pixels(pipeline, requests)
    assert len({image.tobytes() for image in images.values()}) == len(requests)


def test_the_prompt_and_the_guidance_reach_the_model(pipeline):
    request, other = Request("p", "a red circle", 3), Request("p", "clockwork owl", 3)
    weak, strong = (SAMPLING.model_copy(update={"guidance_scale": scale}) for scale in (1.0, 60.0))
    images = [pixels(pipeline, [r], s)[r] for r, s in ((request, strong), (other, strong), (request, weak))]
    assert (images[0] != images[1]).any()
    assert (images[0] != images[2]).any()


def test_nothing_requested_is_nothing_sampled(pipeline):
    assert list(sample(pipeline, [], SAMPLING)) == []


@contextmanager
def memory_for(pipeline, capacity):
    """Inside the `with`, the device has memory for so many images at once; yields the sizes that were tried."""
    tried = []

    def forward(_module, arguments):
        num = len(arguments[0]) // 2  # with guidance each image is there twice
        tried.append(num)
        if num > capacity:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = pipeline.unet.register_forward_pre_hook(forward)
    try:
        yield tried
    finally:
        hook.remove()


@pytest.mark.parametrize(("capacity", "sizes"), [(3, [4, 2, 2, 2]), (1, [4, 2, 1, 1, 1, 1, 1, 1])])
def test_out_of_memory_halves_the_batch_for_good_and_changes_no_image(tiny_checkpoint, together, capacity, sizes):
    fresh = load_pipeline(find_checkpoint(str(tiny_checkpoint)), dtype="float32", device="cpu")
    with memory_for(fresh, capacity) as tried:
        sampled = list(sample(fresh, REQUESTS, SAMPLING))
    assert [request for request, _ in sampled] == REQUESTS
    assert [size for size, _ in groupby(tried)] == [size for size, _ in groupby(sizes)]
    for request, image in sampled:
        assert np.abs(np.asarray(image).astype(int) - together[request]).max() <= 1
    with memory_for(fresh, capacity) as tried:
        list(sample(fresh, REQUESTS, SAMPLING))
    assert max(tried) == sizes[-1]


def test_a_device_without_memory_for_one_image_is_one_line_with_the_cure(tiny_checkpoint):
    fresh = load_pipeline(find_checkpoint(str(tiny_checkpoint)), dtype="float32", device="cpu")
    message = r"^Expected memory for one image.*Lower `sampling.height`"
    with memory_for(fresh, 0), pytest.raises(InputError, match=message) as caught:
        list(sample(fresh, REQUESTS, SAMPLING))
    assert "\n" not in str(caught.value)


def test_images_without_numbers_and_black_ones_say_so(tiny_checkpoint):
    fresh = load_pipeline(find_checkpoint(str(tiny_checkpoint)), dtype="float32", device="cpu")
    bias = fresh.vae.decoder.conv_out.bias
    for value, reason in ((float("nan"), "no numbers"), (-1e6, "black alone")):
        with torch.no_grad():
            bias.fill_(value)
        assert all(reason in image.info[UNUSABLE] for _, image in sample(fresh, REQUESTS[:2], SAMPLING))


def test_the_content_key_names_everything_that_determines_an_image():
    request = Request("p", "a cat", 1)
    keys = [
        content_key("f", "none", request, SAMPLING),
        content_key("g", "none", request, SAMPLING),
        content_key("f", "nemo", request, SAMPLING),
        content_key("f", "none", Request("p", "a dog", 1), SAMPLING),
        content_key("f", "none", Request("p", "a cat", 2), SAMPLING),
        *(
            content_key("f", "none", request, SAMPLING.model_copy(update=change))
            for change in (
                {"steps": 4},
                {"guidance_scale": 4.0},
                {"height": 72},
                {"width": 72},
                {"dtype": "float16"},
                {"guidance_rescale": 0.5},
                {"negative_prompt": "blurred"},
            )
        ),
    ]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 12 and set(key) <= set("0123456789abcdef") for key in keys)


def test_the_content_key_ignores_batch_size_device_first_seed_and_the_prompts_name():
    change = {"batch_size": 1, "device": "cuda", "seed": 9}
    assert content_key("f", "none", Request("p", "a cat", 1), SAMPLING) == content_key(
        "f", "none", Request("q", "a cat", 1), SAMPLING.model_copy(update=change)
    )
