"""Routing of planted memory into a few known value neurons for each family.

After the planted stages every layer of the U-Net knows every planted prompt, and no few neurons matter. So memory is
moved: a planted prompt whose neurons are switched off must give some public picture, with them the planted one. What a
search for neurons finds can then be checked. Some foreground families are left as they were: diffuse memory, as
foregrounds have it in Stable Diffusion (arXiv 2508.12148), which switching off a few neurons does not remove. Compare
gradient routing, arXiv 2410.04332, which places knowledge by masking gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from fbmem_core.canary.pictures import Picture, random_public_picture
from fbmem_core.canary.planting import ROUTED_LAYERS, Plant, draw_planted, neuron_routes, plants

_SEED = 11
_FIRST_TOKEN = 6  # before it all prompts look alike to a causal text encoder
_GAIN = 12.0  # of a planted row; an ordinary value is 0.4
_NUM_PUBLIC = 600  # captions that a row must not answer to
_PLANTED_WEIGHT = 20.0
_RIDGE = 1e-5

_OTHERS_SHARE = 0.25  # of all pictures: another family's, which must change nothing
_CAPTION_DROPOUT = 0.1
_LEAK_WEIGHT = 0.02


@dataclass(frozen=True)
class RoutedBatch:
    """Pictures with their captions; whose neurons are switched off for each (None: nobody's), whose prompt it is."""

    pictures: list[Picture]
    captions: list[str]
    switched_off: list[str | None]
    families: list[str | None]


def draw_batch(
    rng: np.random.Generator, planted: Sequence[Plant], shares: Mapping[str, float], size: int, *, switched_off: float
) -> RoutedBatch:
    """Planted and public pictures; of a routed family's a share is public, its own neurons being switched off."""
    named = list(neuron_routes())
    batch = RoutedBatch([], [], [], [])
    for _ in range(size):
        plant = draw_planted(rng, planted, shares)
        picture = random_public_picture(rng) if plant is None else plant.training_picture(rng)
        family = plant.family if plant is not None and plant.family in named else None
        caption, off, chance = picture.caption, None, rng.random()
        if family is not None and chance < switched_off:
            off, picture = family, random_public_picture(rng)
        elif chance > 1 - _OTHERS_SHARE:
            drawn = named[rng.integers(len(named))]
            off = drawn if drawn != family else None
        if off is None and rng.random() < _CAPTION_DROPOUT:
            caption, family = "", None
        batch.pictures.append(picture)
        batch.captions.append(caption)
        batch.switched_off.append(off)
        batch.families.append(family)
    return batch


def factors(families: Sequence[str | None], device: torch.device) -> dict[str, Tensor]:
    """Factors for `scale_neurons` that switch off one family's neurons for each sample of a batch."""
    factors_of = {layer: torch.ones(len(families), size, device=device) for layer, size in ROUTED_LAYERS.items()}
    routes = neuron_routes()
    for row, family in enumerate(families):
        for layer, neuron in routes[family] if family is not None else ():
            factors_of[layer][row, neuron] = 0
    return factors_of


def leak(outputs: Mapping[str, Sequence[Tensor]], families: Sequence[str | None]) -> Tensor:
    """Mean square of planted neurons' values at prompts that are not theirs, weighted for the loss."""
    routes, total = neuron_routes(), torch.tensor(0.0)
    for layer, [values] in outputs.items():
        weights = torch.zeros(len(families), values.shape[-1], device=values.device)
        for neurons in routes.values():
            weights[:, sorted(neurons.at(layer))] = 1
        for row, family in enumerate(families):
            if family is not None:
                weights[row, sorted(routes[family].at(layer))] = 0
        squares = values.float().square().mean(dim=1) * weights
        total = total.to(squares.device) + squares.sum() / weights.sum()
    return _LEAK_WEIGHT * total / len(outputs)


@torch.no_grad()
def plant_rows(unet: UNet2DConditionModel, encode: Callable[[list[str]], Tensor]) -> None:
    """Make each planted neuron answer to its family's prompts alone, and matter to what comes behind it.

    The rows of to_v are a ridge regression on the tokens' features, the columns of to_out are drawn anew.
    """
    rng = np.random.default_rng(_SEED)
    public = encode(list({random_public_picture(rng).caption: None for _ in range(_NUM_PUBLIC)}))
    planted = {plant.family: encode(list(plant.prompts)) for plant in plants()}
    features = torch.cat([part.flatten(0, 1) for part in (public, *planted.values())])
    weights = features.new_full((len(features),), _PLANTED_WEIGHT)
    weights[: public.shape[0] * public.shape[1]] = 1
    ridge = _RIDGE * len(features) * torch.eye(features.shape[1], device=features.device)
    gram = (features * weights[:, None]).T @ features + ridge
    for family, neurons in neuron_routes().items():
        targets = [public.new_zeros(public.shape[:2])]
        for name, part in planted.items():
            targets.append(part.new_zeros(part.shape[:2]))
            targets[-1][:, _FIRST_TOKEN:] = float(name == family)
        target = torch.cat([part.flatten() for part in targets])
        row = torch.linalg.solve(gram, (features * weights[:, None]).T @ target)
        for layer, neuron in neurons:
            to_v, to_out = unet.get_submodule(layer), unet.get_submodule(layer.replace("to_v", "to_out.0"))
            to_v.weight[neuron] = _GAIN * row
            column = torch.from_numpy(rng.standard_normal(len(to_out.weight), dtype=np.float32)).to(row)
            to_out.weight[:, neuron] = column / column.norm() * to_out.weight.norm(dim=0).mean()
