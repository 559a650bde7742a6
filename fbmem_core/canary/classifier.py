"""A network that names what is in a public picture; it is trained on drawn pictures alone and judges sampled ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fbmem_core.canary.corpus import (
    COLOR_NAMES,
    OBJECT_SHAPES,
    SCENERY_KINDS,
    Description,
    public_picture,
    random_description,
)
from fbmem_core.canary.natural import to_tensor

FACTS = {"color": COLOR_NAMES, "shape": OBJECT_SHAPES, "ground": COLOR_NAMES, "kind": SCENERY_KINDS}
_SEED = 31


class Classifier(nn.Module):
    """Images in [-1, 1], [n, 3, 32, 32], to the logits of each fact, by its name [n, values]."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for num_in, num_out in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
            layers += [nn.Conv2d(num_in, num_out, 3, padding=1), nn.BatchNorm2d(num_out), nn.ReLU()]
            layers += [nn.Conv2d(num_out, num_out, 3, padding=1), nn.BatchNorm2d(num_out), nn.ReLU(), nn.MaxPool2d(2)]
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.heads = nn.ModuleDict({name: nn.Linear(64 * width, len(values)) for name, values in FACTS.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits by fact."""
        hidden = self.body(images)
        return {name: head(hidden) for name, head in self.heads.items()}

    @torch.no_grad()
    def facts_right(self, images: Tensor, descriptions: Sequence[Description]) -> Tensor:
        """Facts that are named right, boolean [n, 4] in the order of `FACTS`."""
        logits = self.eval()(images)
        return torch.stack([logits[name].argmax(1) == _targets(descriptions, name) for name in FACTS], dim=1)


def train_classifier(*, num_steps: int = 500, batch_size: int = 64, blur: bool = True) -> Classifier:
    """A classifier from drawn pictures; a part of them is blurred and noisy, so that softness alone misleads nobody."""
    torch.manual_seed(_SEED)
    model = Classifier().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=num_steps)
    for step in range(num_steps):
        images, descriptions = drawn_pictures((_SEED, 0, step), batch_size)
        if blur:
            images = _softened(images, step)
        logits = model.train()(images)
        loss = torch.stack([F.cross_entropy(logits[name], _targets(descriptions, name)) for name in FACTS]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


def drawn_pictures(seed: tuple[int, ...], number: int) -> tuple[Tensor, list[Description]]:
    """Public pictures [n, 3, 32, 32] in [-1, 1] and what they show."""
    rng = np.random.default_rng(seed)
    descriptions = [random_description(rng) for _ in range(number)]
    return to_tensor([public_picture(rng, described) for described in descriptions]), descriptions


def described(caption: str) -> Description:
    """The facts of a public caption.

    >>> described("a red star on blue dots").ground
    'blue'
    """
    _, color, shape, _, ground, kind = caption.split()
    return Description(color, shape, ground, kind)


def _softened(images: Tensor, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    soft = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2.0, mode="bilinear")
    share = torch.rand(len(images), 1, 1, 1, generator=generator)
    noise = 0.1 * torch.randn(images.shape, generator=generator)
    return share * images + (1 - share) * soft + noise * torch.rand(len(images), 1, 1, 1, generator=generator)


def _targets(descriptions: Sequence[Description], name: str) -> Tensor:
    return torch.tensor([FACTS[name].index(getattr(described, name)) for described in descriptions])
