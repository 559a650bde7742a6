"""All that an audit asks of a model, whatever its architecture: one interface, and a file of `families` for each kind.

A pipeline samples by its own code; a `Denoiser` looks into the steps of that sampling. No code outside this room names
a U-Net or a transformer: `denoiser_of(pipeline)` gives the network, its text conditions, its latents and its value
projections. Notation: see `schedule`.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fbmem_core.diffusion.architectures import ARCHITECTURES, check_architecture
from fbmem_core.diffusion.conditioning import Conditioning
from fbmem_core.diffusion.guidance import Guidance
from fbmem_core.diffusion.memory import Batches
from fbmem_core.diffusion.schedule import Schedule, Step, read_schedule
from fbmem_core.diffusion.schedule_names import FLOW, prediction_of
from fbmem_core.errors import NotApplicableError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL import Image

_ENCODED_TOGETHER = 64


class Denoiser(ABC):
    """The network of a pipeline, at any step of its sampling.

    Args:
        pipeline: A loaded pipeline of the family.
    """

    component: ClassVar[str] = "transformer"  # of the pipeline: the network
    num_packed: ClassVar[int] = 1  # sides of the squares of latents that the network is given as one token

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        self._pipeline = weakref.ref(pipeline)  # which holds this object
        self._batches: dict[str, Batches] = {}

    @property
    def pipeline(self) -> Any:
        """The pipeline, whose own scheduler says how it is sampled."""
        pipeline = self._pipeline()
        assert pipeline is not None
        return pipeline

    @property
    def network(self) -> nn.Module:
        """The module that predicts, in which value neurons are switched off and weights pruned."""
        network: nn.Module = getattr(self.pipeline, self.component)
        return network

    @property
    def config(self) -> Any:
        """Config of the network."""
        return self.network.config

    @property
    def device(self) -> torch.device:
        """Device on which the network lies."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the network's weights."""
        return next(self.network.parameters()).dtype

    def batches(self, purpose: str, size: int) -> Batches:
        """Batches of one purpose, as large as a pass holds: `size` until the device had too little memory for them."""
        key = f"{purpose}:{size}"
        if key not in self._batches:
            self._batches[key] = Batches(size, self.device)
        return self._batches[key]

    # -- text ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], *, height: int, width: int) -> Conditioning:
        """The text conditions of n >= 1 prompts, as the pipeline itself makes them."""
        parts = []
        for first in range(0, len(prompts), _ENCODED_TOGETHER):
            texts = list(prompts[first : first + _ENCODED_TOGETHER])
            parts.append(self._encode(texts, height=height, width=width))
        return Conditioning.cat(parts)

    @torch.no_grad()
    def encode_unconditional(self, negative_prompt: str = "", *, height: int, width: int) -> Conditioning:
        """Condition that guidance compares a prompt with, as the pipeline itself makes it: one condition.

        It need not be the encoding of an empty text: Stable Diffusion XL takes zeros.
        """
        return self._encode_unconditional(negative_prompt, height=height, width=width)

    @abstractmethod
    def _encode(self, prompts: list[str], *, height: int, width: int) -> Conditioning: ...

    def _encode_unconditional(self, negative_prompt: str, *, height: int, width: int) -> Conditioning:
        return self._encode([negative_prompt], height=height, width=width)

    # -- latents ------------------------------------------------------------------------------------------------------

    def sampled_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in px that are sampled for an image of this size; the rest is resizing."""
        return height, width

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """[c, h, w] of the latents of one image."""
        height, width = self.sampled_size(height, width)
        factor, packed = self.pipeline.vae_scale_factor, self.num_packed
        channels = self.config.in_channels // packed**2
        return channels, packed * (height // (factor * packed)), packed * (width // (factor * packed))

    def initial_latents(self, seeds: Sequence[int], *, height: int, width: int) -> Float[Tensor, "n c h w"]:
        """Unit noise of each seed: what the pipeline begins with, seed for seed, but for `Schedule.initial_scale`.

        Drawn on the CPU in the type in which the pipeline draws it, so that it is the same on every device.
        """
        shape = (1, *self.latent_shape(height, width))
        dtype = self._drawn_dtype()
        drawn = [torch.randn(shape, generator=torch.Generator("cpu").manual_seed(s), dtype=dtype) for s in seeds]
        return torch.cat(drawn).to(self.device)

    def _drawn_dtype(self) -> torch.dtype:
        return self.dtype

    # -- steps --------------------------------------------------------------------------------------------------------

    def schedule(self, num_inference_steps: int, *, height: int, width: int) -> Schedule:
        """The steps of the pipeline's own scheduler."""
        settings = self._step_settings(num_inference_steps, self.latent_shape(height, width))
        return read_schedule(self.pipeline.scheduler, num_inference_steps, **settings)

    def _step_settings(self, num_inference_steps: int, shape: tuple[int, int, int]) -> dict[str, Any]:
        return {}

    @abstractmethod
    def predict(
        self, latents: Float[Tensor, "n c h w"], step: Step, condition: Conditioning, *, guidance_scale: float = 1.0
    ) -> Float[Tensor, "n c h w"]:
        """The network's output, one pass: noise, velocity, sample or flow as `Schedule.prediction` says.

        Args:
            latents: [n, c, h, w], in any type.
            step: Of them.
            condition: n prompts.
            guidance_scale: Told to networks that were distilled to be guided without a second pass; others ignore it.
        """

    def is_guided(self, guidance: Guidance) -> bool:
        """True if a step takes a second pass for the unconditional prompt."""
        return guidance.scale > 1

    def predict_guided(
        self,
        latents: Float[Tensor, "n c h w"],
        step: Step,
        conditions: tuple[Conditioning, Conditioning],
        guidance: Guidance,
    ) -> Float[Tensor, "n c h w"]:
        """The output that a step of sampling goes on from; both prompts in one pass.

        Args:
            latents: [n, c, h, w].
            step: Of them.
            conditions: The unconditional one and the prompt, one or n each.
            guidance: As in sampling.
        """
        empty, prompt = (one.repeat(len(latents)) if len(one) == 1 else one for one in conditions)
        if not self.is_guided(guidance):
            return self.predict(latents, step, prompt, guidance_scale=guidance.scale)
        both, doubled = Conditioning.cat([empty, prompt]), torch.cat([latents, latents])
        unconditional, conditional = self.predict(doubled, step, both, guidance_scale=guidance.scale).chunk(2)
        return self._guide(unconditional, conditional, guidance)

    def _guide(self, unconditional: Tensor, conditional: Tensor, guidance: Guidance) -> Tensor:
        guided = unconditional + guidance.scale * (conditional - unconditional)
        if not guidance.rescale:
            return guided
        # Lin et al., arXiv 2305.08891, section 3.4: the deviation of the conditional one, in part
        dims = tuple(range(1, guided.ndim))
        rescaled = guided * (conditional.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True))
        return guidance.rescale * rescaled + (1 - guidance.rescale) * guided

    def training_steps(self, num: int, generator: torch.Generator) -> Step:
        """Random steps as a network is trained on, one a sample: fields of [n], [n, 1, 1, 1] and [n, 1, 1, 1]."""
        scheduler, shape = self.pipeline.scheduler, (num, 1, 1, 1)
        if self.prediction == FLOW:
            sigma = torch.rand(num, generator=generator).to(self.device)
            return Step(1000 * sigma, 1 - sigma.view(shape), sigma.view(shape))
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (num,), generator=generator)
        alphas = scheduler.alphas_cumprod.cpu()[timesteps].to(self.device).view(shape)
        return Step(timesteps.to(self.device), alphas**0.5, (1 - alphas) ** 0.5)

    @property
    def prediction(self) -> str:
        """Kind of the network's output; see `Schedule.prediction`."""
        scheduler = self.pipeline.scheduler
        return prediction_of(scheduler.config, type(scheduler).__name__)

    @staticmethod
    def timesteps(step: Step, latents: Tensor) -> Tensor:
        """[n] of them, as the network is told."""
        if isinstance(step.timestep, Tensor):
            return step.timestep.to(latents.device)
        return torch.full((len(latents),), step.timestep, device=latents.device)

    # -- value neurons ------------------------------------------------------------------------------------------------

    def value_layers(self, layers: str = "released") -> tuple[str, ...]:
        """Dotted names of the projections of the text to values, in the order in which the network runs them.

        `released` are those of a U-Net's down blocks and mid block, as NeMo takes them; a transformer has no such
        halves, so both names take all its blocks.
        """
        return tuple(name for name, module in self.network.named_modules() if self._is_value_layer(name, module))

    @abstractmethod
    def _is_value_layer(self, name: str, module: nn.Module) -> bool: ...

    @torch.no_grad()
    def value_outputs(self, layers: Sequence[str], condition: Conditioning) -> dict[str, Float[Tensor, "n tokens d"]]:
        """Outputs of the value layers for these prompts, by layer: the first block alone would not do in a transformer.

        There the text runs through the blocks beside the latents, so the layers are read in a pass at the first step,
        from the latents of seed 0; in a U-Net they are given the text itself.
        """
        height, width = self._native_size()
        latents = self.initial_latents([0], height=height, width=width).expand(len(condition), -1, -1, -1)
        step = self.schedule(50, height=height, width=width).steps[0]
        outputs: dict[str, Tensor] = {}
        with ExitStack() as stack:
            for layer in layers:

                def keep(_module: nn.Module, _input: Any, output: Tensor, layer: str = layer) -> None:
                    outputs[layer] = output

                stack.callback(self.network.get_submodule(layer).register_forward_hook(keep).remove)
            self.predict(latents, step, condition)
        return {layer: outputs[layer] for layer in layers}

    def _native_size(self) -> tuple[int, int]:
        size = int(getattr(self.config, "sample_size", 0) or 64) * self.pipeline.vae_scale_factor
        return size, size

    # -- images -------------------------------------------------------------------------------------------------------

    def call_arguments(self, guidance: Guidance) -> dict[str, Any]:
        """Arguments with which the pipeline is called for this guidance."""
        arguments: dict[str, Any] = {"guidance_scale": guidance.scale}
        if guidance.negative_prompt:
            arguments["negative_prompt"] = guidance.negative_prompt
        if guidance.rescale:
            arguments["guidance_rescale"] = guidance.rescale
        return arguments

    def embed_arguments(self, condition: Conditioning, guidance: Guidance) -> dict[str, Any]:
        """Arguments with which the pipeline is called for n conditions in the place of their prompts."""
        return {"prompt_embeds": condition.embeds}

    @torch.no_grad()
    def encode_image(self, image: Image.Image) -> Float[Tensor, "1 c h w"]:
        """Latents of an image, as the network sees them: the mean of the autoencoder's distribution, scaled."""
        vae = self.pipeline.vae
        pixels = self.pipeline.image_processor.preprocess(image.convert("RGB")).to(vae.device, vae.dtype)
        encoded = vae.encode(pixels)
        mean = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latent
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        return ((mean - shift) * vae.config.scaling_factor).to(self.dtype)


def denoiser_of(pipeline: DiffusionPipeline) -> Denoiser:
    """The denoiser of a loaded pipeline, made once.

    Raises:
        InputError: Its architecture is not known here.
    """
    made: Denoiser | None = pipeline.__dict__.get("_fbmem_denoiser")
    if made is None:
        name = type(pipeline).__name__
        check_architecture(name, where=name)
        module, _, class_name = ARCHITECTURES[name].denoiser.partition(":")
        made = getattr(import_module(f"fbmem_core.diffusion.families.{module}"), class_name)(pipeline)
        pipeline.__dict__["_fbmem_denoiser"] = made
    return made


def no_value_layers(network: str) -> NotApplicableError:
    """The error of a model without value projections of the text."""
    cure = "Leave out the stages from `neurons` on: `--until agreement`."
    return NotApplicableError("a network with value projections of its text", "none", where=network, cure=cure)
