"""Encoded prompts, as a network is told them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

MASK = "mask"  # in `Conditioning.added`: which tokens are no padding


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts: `embeds` [n, tokens, d], and what else the network is told, [n, ...] each, by name."""

    embeds: Tensor
    added: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.embeds)

    def rows(self, index: int | slice | Tensor) -> Conditioning:
        """Conditions of a few of the prompts."""
        if isinstance(index, int):
            index = slice(index, index + 1)
        return Conditioning(self.embeds[index], {name: value[index] for name, value in self.added.items()})

    def repeat(self, num: int) -> Conditioning:
        """A single prompt, `num` times."""
        added = {name: value.expand(num, *value.shape[1:]) for name, value in self.added.items()}
        return Conditioning(self.embeds.expand(num, -1, -1), added)

    def with_embeds(self, embeds: Float[Tensor, "1 tokens d"]) -> Conditioning:
        """All prompts with this embedding, whose tokens all count, and what else they are."""
        added = dict(self.added)
        if MASK in added and embeds.shape[1] != self.embeds.shape[1]:
            added[MASK] = added[MASK].new_ones(len(self), embeds.shape[1])
        return Conditioning(embeds.to(self.embeds).expand(len(self), -1, -1), added)

    def batches(self, size: int) -> Iterator[Conditioning]:
        """The prompts in turn, at most `size` at once."""
        return (self.rows(slice(first, first + size)) for first in range(0, len(self), size))

    @classmethod
    def cat(cls, parts: Sequence[Conditioning]) -> Conditioning:
        """One after the other; those with a mask are padded to the longest."""
        longest = max(part.embeds.shape[1] for part in parts)
        padded = [part._padded(longest) for part in parts]
        names = padded[0].added
        return cls(
            torch.cat([part.embeds for part in padded]),
            {name: torch.cat([part.added[name] for part in padded]) for name in names},
        )

    def _padded(self, num_tokens: int) -> Conditioning:
        missing = num_tokens - self.embeds.shape[1]
        if not missing:
            return self
        mask = nn.functional.pad(self.added[MASK], (0, missing))
        return Conditioning(nn.functional.pad(self.embeds, (0, 0, 0, missing)), {**self.added, MASK: mask})
