"""Memorization neurons: value neurons of cross-attention that a memorized prompt depends on."""
