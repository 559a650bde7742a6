"""Memorization neurons: value neurons of cross-attention that a memorized prompt depends on."""

from typing import Literal

Layers = Literal["released", "all"]  # down and mid blocks, as NeMo's released code; or the up blocks too
Search = Literal["groups", "exact"]  # how a layer's neurons are refined: in groups, or one by one as NeMo does
