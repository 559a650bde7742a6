"""Seed agreement: regions in which predicted images agree, and what that says."""

import pytest
import torch

from fbmem_core.diffusion.checkpoint import find_checkpoint
from fbmem_core.diffusion.guidance import Guidance
from fbmem_core.diffusion.loading import load_pipeline
from fbmem_core.diffusion.noise_difference import FirstStep, encode_prompts
from fbmem_core.diffusion.seed_agreement import SeedAgreement, predict_clean_latents, predict_label, seed_agreement
from fbmem_core.errors import InputError

SIZE = {"height": 64, "width": 64}


def latents_and_mattes(same_inside, same_outside, num=6):
    """Latents of `num` seeds that are the same in some regions; the object covers the middle quarter."""
    generator = torch.Generator().manual_seed(0)
    alpha = torch.zeros(1, 1, 64, 64)
    alpha[..., 16:48, 16:48] = 1
    region = torch.nn.functional.adaptive_avg_pool2d(alpha, 16)
    shared, own = torch.randn(1, 4, 16, 16, generator=generator), torch.randn(num, 4, 16, 16, generator=generator)
    same = region * same_inside + (1 - region) * same_outside
    return shared * same + own * (1 - same), alpha.expand(num, -1, -1, -1)


@pytest.mark.parametrize(
    ("same_inside", "same_outside", "label"), [(1, 1, "VM"), (1, 0, "FM"), (0, 1, "BM"), (0, 0, "NM")]
)
def test_the_label_follows_from_where_seeds_agree(same_inside, same_outside, label):
    found = seed_agreement(*latents_and_mattes(same_inside, same_outside))
    assert found.inside == pytest.approx(same_inside, abs=0.2)
    assert found.outside == pytest.approx(same_outside, abs=0.2)
    assert predict_label(found, threshold=0.5) == label
    assert found.agreement_map[8, 8].item() == pytest.approx(same_inside, abs=0.4)
    assert found.agreement_map[0, 0].item() == pytest.approx(same_outside, abs=0.4)


def test_images_of_several_remembered_pictures_agree_with_their_like():
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    _, alphas = latents_and_mattes(1, 1)
    found = seed_agreement(latents[[0, 1, 0, 1, 1, 0]], alphas)
    assert (found.inside, found.outside) == (pytest.approx(1), pytest.approx(1))
    assert found.agreement_map.min() > 0.99


def test_agreement_does_not_depend_on_the_order_or_the_scale_of_seeds():
    latents, alphas = latents_and_mattes(0.5, 0.2)
    scales = torch.tensor([1, 2, 3, 1, 5, 1.0])[:, None, None, None]
    one, other = seed_agreement(latents, alphas), seed_agreement((latents * scales).flip(0), alphas)
    assert one.inside == pytest.approx(other.inside, abs=1e-5)
    assert torch.allclose(one.agreement_map, other.agreement_map, atol=1e-5)


@pytest.mark.parametrize(("fill", "expected"), [(0.0, (None, 1.0, "VM")), (1.0, (1.0, None, "VM"))])
def test_a_region_that_no_image_has_is_undefined(fill, expected):
    latents, alphas = latents_and_mattes(1, 1)
    found = seed_agreement(latents, torch.full_like(alphas, fill))
    values = tuple(None if value is None else round(value, 4) for value in (found.inside, found.outside))
    assert (*values, predict_label(found, threshold=0.5)) == expected


def test_nothing_agrees_where_nothing_is_defined():
    assert predict_label(SeedAgreement(None, None, torch.zeros(1, 1)), threshold=0.5) == "NM"


def test_a_single_seed_agrees_with_nothing():
    latents, alphas = latents_and_mattes(1, 1)
    with pytest.raises(InputError, match="Expected two seeds or more with a matte each, but got 1 and 1"):
        seed_agreement(latents[:1], alphas[:1])


def test_clean_latents_of_the_last_step_are_the_image_that_is_sampled(tiny_checkpoint):
    pipeline = load_pipeline(find_checkpoint(str(tiny_checkpoint)), dtype="float32", device="cpu")
    conditions = tuple(encode_prompts(pipeline, [text], **SIZE) for text in ("", "a red circle"))
    step = FirstStep(pipeline, [0, 1], **SIZE)
    settings = {"guidance": Guidance(3.0), "num_inference_steps": 3}
    found = predict_clean_latents(pipeline, step.latents, conditions, num_steps=3, **settings)
    sampled = pipeline(
        prompt=["a red circle"] * 2,
        generator=[torch.Generator().manual_seed(seed) for seed in (0, 1)],
        output_type="latent",
        height=64,
        width=64,
        guidance_scale=3.0,
        num_inference_steps=3,
    ).images
    assert found.shape == (3, 2, 4, 16, 16)
    # DDIM's last step ends at the image of step 0, not at the clean one
    first = pipeline.scheduler.alphas_cumprod[0].sqrt()
    assert torch.nn.functional.cosine_similarity(found[-1].flatten(1), sampled.flatten(1)).min() > first - 0.01
    with pytest.raises(InputError, match="Expected 1 to 3 steps, but got 4"):
        predict_clean_latents(pipeline, step.latents, conditions, num_steps=4, **settings)
