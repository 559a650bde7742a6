"""What a mitigation achieves, and at what cost: scores, image quality, attacks, changes between checkpoints."""

from typing import Literal

Metric = Literal["brisque", "clip", "dbcnn", "qalign"]
Attack = Literal["paraphrase", "adversarial", "control"]
