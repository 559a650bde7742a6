"""Cross-attention to the last token of a prompt, as a map of the latents."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_CROSS_ATTENTION = "attn2"


class AttentionMaps:
    """Attention to the last token, gathered layer by layer in one pass: [n, positions] each, the mean of its heads."""

    def __init__(self) -> None:
        self.layers: list[Tensor] = []

    def average(self, size: tuple[int, ...]) -> Tensor | None:
        """[n, h, w] of the layers of finest resolution, resized to latents of `size`; None without any layer."""
        if not self.layers:
            return None
        finest = max(layer.shape[1] for layer in self.layers)
        mean = torch.stack([layer for layer in self.layers if layer.shape[1] == finest]).mean(dim=0)
        height, width = size
        scale = (finest / (height * width)) ** 0.5
        square = mean.view(len(mean), 1, round(height * scale), round(width * scale))
        return F.interpolate(square, size=(height, width), mode="bilinear", align_corners=False)[:, 0]


@contextmanager
def end_token_attention(network: nn.Module) -> Iterator[AttentionMaps]:
    """Inside the `with`, every cross-attention layer of the down blocks adds its map to the object.

    Bright ending (arXiv 2410.21665) looks at the down blocks of the finest resolution.
    """
    maps = AttentionMaps()
    with ExitStack() as stack:
        for name, module in network.named_modules():
            if name.split(".")[-1] == _CROSS_ATTENTION and name.startswith("down_blocks"):
                stack.callback(module.register_forward_pre_hook(_gatherer(maps), with_kwargs=True).remove)
        yield maps


def _gatherer(maps: AttentionMaps) -> Any:
    def gather(module: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        hidden = inputs[0] if inputs else options["hidden_states"]
        text = options.get("encoder_hidden_states", inputs[1] if len(inputs) > 1 else None)
        query = module.head_to_batch_dim(module.to_q(hidden))
        key = module.head_to_batch_dim(module.to_k(hidden if text is None else text))
        weights = module.get_attention_scores(query, key)[..., -1].float()
        maps.layers.append(weights.view(len(hidden), -1, weights.shape[-1]).mean(dim=1))

    return gather
