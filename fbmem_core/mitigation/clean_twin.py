"""The perfect mitigation, where it is known: the weights of a twin that was trained without the memorized images."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch

from fbmem_core.diffusion.checkpoint import find_checkpoint
from fbmem_core.diffusion.denoiser import denoiser_of
from fbmem_core.diffusion.loading import load_pipeline
from fbmem_core.errors import InputError
from fbmem_core.mitigation.method import Intervention, Method

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class CleanTwin(Method):
    """Replace every weight of the U-Net by its twin's, for all prompts.

    An audit names the twin's directory in `twin`. It shares the audited model's text encoder and autoencoder. What it
    leaves is the null of every measure, and how like other mitigations' images are to its own says how close they come.

    Raises:
        InputError: The audit names no twin, or the twin is another kind of model.
    """

    name = "clean_twin"

    def intervention(self, prompt_id: str) -> Intervention:
        """The twin's weights, whichever the prompt is."""
        return self._twin

    def everywhere(self, prompt_id: str) -> Intervention:
        """The twin's weights."""
        return self._twin

    @property
    def num_neurons(self) -> int:
        """Number of weights."""
        return sum(weight.numel() for weight in self._twin.weights.values())

    @property
    def share(self) -> float:
        """All weights."""
        return 1.0

    @cached_property
    def _twin(self) -> Intervention:
        evidence = self.evidence
        if evidence.twin is None:
            cure = "Name the directory of its twin in `twin`, or leave out `clean_twin`."
            raise InputError("a model trained without what is memorized", "none", where="the audit", cure=cure)
        pipeline = load_pipeline(
            find_checkpoint(str(evidence.twin)), dtype=_dtype_name(evidence.pipeline), device="cpu"
        )
        own, twin = (dict(denoiser_of(model).network.named_parameters()) for model in (evidence.pipeline, pipeline))
        if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in twin.items()}:
            cure = "Name a twin of the same architecture."
            raise InputError("the audited model's layers", "other layers", where=evidence.twin, cure=cure)
        texts = [model.text_encoder.state_dict() for model in (evidence.pipeline, pipeline)]
        if texts[0].keys() != texts[1].keys() or not all(
            torch.equal(value.cpu(), texts[1][name].cpu()) for name, value in texts[0].items()
        ):
            cure = "Train the twin with the same text encoder."
            raise InputError("the audited model's text encoder", "another one", where=evidence.twin, cure=cure)
        return Intervention(weights={name: value.detach() for name, value in twin.items()})


def _dtype_name(pipeline: DiffusionPipeline) -> str:
    return str(denoiser_of(pipeline).dtype).removeprefix("torch.")
