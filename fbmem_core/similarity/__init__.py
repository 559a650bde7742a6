"""How alike two images, or regions of them, are."""
