"""Images sampled under interventions, with the latents and seeds of those that are sampled without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from fbmem_core.diffusion.sampling import Request, sample
from fbmem_core.errors import InputError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL import Image
    from torch import Tensor

    from fbmem_core.diffusion.settings import SamplingConfig
    from fbmem_core.mitigation.method import Intervention


def sample_mitigated(
    pipeline: DiffusionPipeline,
    requests: Sequence[Request],
    sampling: SamplingConfig,
    interventions: Mapping[str, Intervention],
) -> Iterator[tuple[Request, Image.Image]]:
    """What `sample` yields, each image under the intervention of its prompt.

    Consecutive requests whose interventions have one key share batches. Between two batches the model is as it was, so
    whoever stops listening leaves nothing behind. An embedding replaces the prompt's; with guidance the empty prompt
    stays what it is compared with.

    Args:
        pipeline: The audited model.
        requests: What is sampled, in this order.
        sampling: How.
        interventions: By prompt_id, of every prompt that is requested.

    Raises:
        InputError: A prompt has no intervention, or one with an embedding is asked of a model with two text encoders.
    """
    lost = sorted({request.prompt_id for request in requests} - interventions.keys())
    if lost:
        raise InputError("an intervention for every prompt", f"none for `{lost[0]}`", cure="Name `NO_INTERVENTION`.")
    for _, group in groupby(requests, key=lambda request: interventions[request.prompt_id].key):
        some = list(group)
        intervention = interventions[some[0].prompt_id]
        embeds = _embeds(pipeline, intervention)
        for first in range(0, len(some), sampling.batch_size):
            batch = some[first : first + sampling.batch_size]
            with intervention.applied(pipeline):
                sampled = list(sample(pipeline, batch, sampling, prompt_embeds=embeds))
            yield from sampled


def _embeds(pipeline: DiffusionPipeline, intervention: Intervention) -> Tensor | None:
    if intervention.embeds is None:
        return None
    if hasattr(pipeline, "text_encoder_2"):
        cure = "Leave out the methods that replace embeddings."
        raise InputError("a model with one text encoder", type(pipeline).__name__, where="an embedding", cure=cure)
    return intervention.embeds.to(pipeline.device, pipeline.unet.dtype)
