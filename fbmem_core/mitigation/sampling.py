"""Images sampled under interventions, with the latents and seeds of those that are sampled without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from fbmem_core.diffusion.denoiser import denoiser_of
from fbmem_core.diffusion.sampling import Request, sample
from fbmem_core.errors import InputError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL import Image

    from fbmem_core.diffusion.settings import SamplingConfig
    from fbmem_core.mitigation.method import Intervention


def sample_mitigated(
    pipeline: DiffusionPipeline,
    requests: Sequence[Request],
    sampling: SamplingConfig,
    interventions: Mapping[str, Intervention],
) -> Iterator[tuple[Request, Image.Image]]:
    """Sample as `sample` does, each image under the intervention of its prompt.

    Consecutive requests whose interventions have one key share batches. Between two batches the model is as it was, so
    whoever stops listening leaves nothing behind. An embedding replaces the prompt's; with guidance the empty prompt
    stays what it is compared with.

    Args:
        pipeline: The audited model.
        requests: What is sampled, in this order.
        sampling: How.
        interventions: By prompt_id, of every prompt that is requested.

    Raises:
        InputError: A prompt has no intervention.
    """
    missing = sorted({request.prompt_id for request in requests} - interventions.keys())
    if missing:
        raise InputError("an intervention for every prompt", f"none for `{missing[0]}`", cure="Name `NO_INTERVENTION`.")
    for _, group in groupby(requests, key=lambda request: interventions[request.prompt_id].key):
        same = list(group)
        intervention = interventions[same[0].prompt_id]
        first = 0
        while first < len(same):
            # as many as one pass holds by now: the model is left as it was between two of them
            batch = same[first : first + denoiser_of(pipeline).batches("sampling", sampling.batch_size).size]
            with intervention.applied(pipeline):
                sampled = list(
                    sample(pipeline, batch, sampling, embeds=intervention.embeds, latents=intervention.latents)
                )
            yield from sampled
            first += len(batch)
