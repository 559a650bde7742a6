"""Similarity of two images, or of regions of them."""

from typing import Literal

# how a region is told from the rest: its pixels alone count, or the rest is black (foreground) or white (background)
Masking = Literal["masked", "composite"]
# how far copies are looked for that do not lie where they lay: mirrored and shifted, or cropped, scaled and turned too
Alignment = Literal["none", "fast", "thorough"]
# in words, beside every label
SEARCHED: dict[Alignment, str] = {
    "none": "in place",
    "fast": "in place, mirrored, shifted by up to 12 % of the side",
    "thorough": "in place, mirrored, shifted, cropped, scaled and turned as far as keypoints find it",
}
REGIONS = ("full", "foreground", "background", "average")  # `average` is the mean of foreground and background
SIMILARITIES = ("full_similarity", "foreground_similarity", "background_similarity")  # as columns of tables
MIN_SIDE = 161  # px; the smallest side at which five scales of an 11 px window fit: (11 - 1) * 2**4 + 1
