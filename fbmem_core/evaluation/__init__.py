"""Evaluation of mitigations and checkpoints: scores, image quality, attacks, changes."""

from typing import Literal

Metric = Literal["alignment", "brisque", "clip", "dbcnn", "qalign"]
Attack = Literal["paraphrase", "adversarial", "control"]
DetectorName = Literal["wen", "sail", "anisotropy", "seed_agreement", "wen_all_steps", "bright_ending"]
