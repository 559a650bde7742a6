"""What a mitigation achieves, and at what cost: scores, image quality, attacks, changes between checkpoints."""

from typing import Literal

Metric = Literal["alignment", "brisque", "clip", "dbcnn", "qalign"]
Attack = Literal["paraphrase", "adversarial", "control"]
DetectorName = Literal["wen", "sail", "anisotropy", "seed_agreement", "wen_all_steps", "bright_ending"]
