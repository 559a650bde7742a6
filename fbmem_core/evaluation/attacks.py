"""After a mitigation, try to bring the memory back: it may hide a memory from its prompt rather than erase it.

Two attempts, both sampled under the prompt's intervention and labelled like any other image: with the words of its
cluster's other prompts, and with a prompt embedding that was optimised towards the memorized picture (arXiv
2507.16880).

Notation: z_0 latents of the picture, eps noise, t a timestep, y the embedding; z_t = signal_t z_0 + noise_t eps.
Minimised is the loss of training, E ||eps - eps_theta(z_t, t, y)||^2 where the network predicts noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fbmem_core.diffusion.conditioning import Conditioning
from fbmem_core.diffusion.denoiser import Denoiser, denoiser_of
from fbmem_core.diffusion.gradients import gradients_of
from fbmem_core.diffusion.noise_difference import encode_prompts
from fbmem_core.diffusion.sampling import Request
from fbmem_core.diffusion.schedule import output_from_both
from fbmem_core.neurons.hooks import frozen

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL import Image

    from fbmem_core.mitigation.method import Intervention

# arXiv 2507.16880
NUM_STEPS = 50
LEARNING_RATE = 0.1
BATCH_SIZE = 2  # timesteps and noises in each step; on the canary 4 and 8 end no nearer

SPREAD = 0.1  # of the noise about the prompt's embedding, in its standard deviations


def neighbor_requests(
    prompts: Mapping[str, str],
    clusters: Mapping[str, int],
    prompt_id: str,
    seeds: range,
    *,
    vectors: Mapping[str, Sequence[float]],
    num_neighbors: int,
) -> list[Request]:
    """The nearest other prompts of a prompt's cluster, at these seeds, named by the id of the prompt that is mitigated.

    To be sampled under the intervention of `prompt_id`; a prompt of its own words is left out.

    Args:
        prompts: Texts by prompt_id.
        clusters: By prompt_id.
        prompt_id: Of the prompt that is mitigated.
        seeds: Of the initial latents.
        vectors: Embeddings by prompt_id; nearest is the highest cosine.
        num_neighbors: At most so many other texts.
    """
    own, here = prompts[prompt_id], _unit(vectors[prompt_id])
    cosines: dict[str, float] = {}
    for name, text in prompts.items():
        if name != prompt_id and text != own and clusters.get(name) == clusters[prompt_id]:
            cosines[text] = max(float(_unit(vectors[name]) @ here), cosines.get(text, -1.0))
    nearest = sorted(cosines, key=lambda text: (-cosines[text], text))[:num_neighbors]
    return [Request(prompt_id, text, seed) for text in nearest for seed in seeds]


def adversarial_embedding(
    pipeline: DiffusionPipeline,
    reference_image: Image.Image,
    intervention: Intervention,
    *,
    start: Float[Tensor, "1 tokens d"],
    prompt: str = "",
    num_steps: int = NUM_STEPS,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
) -> Float[Tensor, "1 tokens d"]:
    """A prompt embedding with which the mitigated model draws the reference, if it still can.

    Adam, 50 steps of learning rate 0.1, each over 2 random timesteps with fresh noise. All tokens are optimised. The
    model's weights are never changed. It attacks without guidance; the images are then sampled as always.

    Args:
        pipeline: The audited model.
        reference_image: The picture, already of the size that is sampled.
        intervention: Under which the embedding shall work; an embedding of its own is left out.
        start: Where to begin; see `starting_embeddings`.
        prompt: Text of the pooled embedding, in models that have one beside that of the tokens; it is not optimised.
        num_steps: Of the optimisation.
        learning_rate: Of Adam.
        seed: Of the timesteps and the noise.

    Returns:
        The embedding of the last step, in the type of the network.
    """
    denoiser, generator = denoiser_of(pipeline), torch.Generator("cpu").manual_seed(seed)
    latents = denoiser.encode_image(reference_image)
    own = denoiser.encode([prompt], height=reference_image.height, width=reference_image.width)
    embeds = start.detach().clone().to(denoiser.device, torch.float32).requires_grad_()
    optimizer = torch.optim.Adam([embeds], lr=learning_rate)
    with intervention.applied(pipeline), torch.enable_grad(), frozen(denoiser.network):
        for _ in range(num_steps):
            loss = _denoising_loss(denoiser, latents, replace(own, embeds=embeds.to(denoiser.dtype)), generator)
            [embeds.grad] = gradients_of(loss, [embeds], denoiser.dtype)
            optimizer.step()
    return embeds.detach().to(denoiser.dtype)


def starting_embeddings(
    pipeline: DiffusionPipeline,
    prompt: str,
    size: tuple[int, int],
    *,
    num_near: int = 1,
    num_random: int = 1,
    seed: int = 0,
) -> list[Float[Tensor, "1 tokens d"]]:
    """Starting points of searches: near the prompt's own embedding, and anywhere.

    Args:
        pipeline: The audited model.
        prompt: Text.
        size: Height and width of the images in px.
        num_near: Starts at the embedding with noise of a tenth of its standard deviation on it.
        num_random: Starts at noise of its mean and standard deviation.
        seed: Of the noise.
    """
    own = encode_prompts(pipeline, [prompt], height=size[0], width=size[1]).embeds.float()
    generator = torch.Generator("cpu").manual_seed(seed)
    noises = [torch.randn(own.shape, generator=generator).to(own) for _ in range(num_near + num_random)]
    near = [own + SPREAD * own.std() * noise for noise in noises[:num_near]]
    return near + [own.mean() + own.std() * noise for noise in noises[num_near:]]


def _unit(vector: Sequence[float]) -> np.ndarray:
    values = np.asarray(vector, dtype=np.float64)
    return values / max(float(np.linalg.norm(values)), 1e-12)


def _denoising_loss(denoiser: Denoiser, latents: Tensor, condition: Conditioning, generator: torch.Generator) -> Tensor:
    noise = torch.randn((BATCH_SIZE, *latents.shape[1:]), generator=generator).to(latents)
    step = denoiser.training_steps(BATCH_SIZE, generator)
    noised = (step.signal * latents + step.noise * noise).to(latents)
    target = output_from_both(latents, noise, step, denoiser.prediction)
    output = denoiser.predict(noised, step, condition.repeat(BATCH_SIZE))
    return F.mse_loss(output.float(), target.float())
