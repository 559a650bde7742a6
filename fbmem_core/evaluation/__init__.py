"""What a mitigation achieves, and at what price: scores, image quality, an attack."""
