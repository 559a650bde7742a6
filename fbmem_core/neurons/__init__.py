"""Memorization neurons: value neurons of cross-attention that a remembered prompt depends on."""
