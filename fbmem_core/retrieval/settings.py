"""Settings of the comparison: the section `similarity` of an audit file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from fbmem_core.labels import BETA, TAU
from fbmem_core.retrieval.descriptors import DESCRIPTORS
from fbmem_core.rules import DEFAULT_RULE, rule_names
from fbmem_core.settings import DEVICE_PATTERN, Section, as_list
from fbmem_core.similarity import MIN_SIDE, Alignment, Masking

FLOOR_BELOW_TAU = 0.2  # how far below tau every reference is listed
SSCD_THRESHOLD = 0.75  # from which on its authors take two pictures for copies


class SimilarityConfig(Section):
    """Settings of the comparison. Summaries and scores use the first masking and rule.

    With a `prefilter` only the references whose vectors are near are compared (`pipeline`: those of its autoencoder,
    `open_clip`, or a descriptor with its file `descriptor_weights`): the `num_candidates` nearest by the
    whole image, its foreground and its background. Its recall is measured on `num_checked` generations. `sscd` is the
    TorchScript file of an SSCD network, which judges pairs a second time: from `sscd_threshold` on it sees a copy.
    """

    size: int = Field(512, ge=MIN_SIDE, le=4096)
    masking: Annotated[list[Masking], BeforeValidator(as_list), Field(min_length=1)] = ["masked"]
    rule: Annotated[list[str], BeforeValidator(as_list), Field(min_length=1)] = [DEFAULT_RULE]
    tau: float = Field(TAU, gt=0, le=1)
    beta: float = Field(BETA, ge=0, lt=0.5)
    top_k: int = Field(5, ge=1)
    floor: float | None = Field(None, ge=0, le=1)
    device: str = Field("auto", pattern=DEVICE_PATTERN)
    alignment: Alignment = "fast"
    prefilter: str = "none"
    descriptor_weights: Path | None = Field(None, validate_default=True)
    sscd: Path | None = None
    sscd_threshold: float = Field(SSCD_THRESHOLD, gt=-1, le=1)
    num_candidates: int = Field(1000, ge=1)
    num_checked: int = Field(20, ge=0)

    @property
    def lowest(self) -> float:
        """The floor: every reference of at least this similarity is found. tau - 0.2 unless the file says otherwise."""
        return max(self.tau - FLOOR_BELOW_TAU, 0.0) if self.floor is None else self.floor

    @property
    def list_from(self) -> float:
        """Similarity from which on a pair is shown with what it copies: the floor, with floor 0 the usual one."""
        return self.lowest or max(self.tau - FLOOR_BELOW_TAU, 0.0)

    @field_validator("rule")
    @classmethod
    def _rules_are_registered(cls, rules: list[str]) -> list[str]:
        if unknown := [rule for rule in rules if rule not in rule_names()]:
            raise ValueError(f"to be of {', '.join(rule_names())}, not `{unknown[0]}`")
        return rules

    @field_validator("descriptor_weights")
    @classmethod
    def _weights_are_those_of_a_prefilter(cls, weights: Path | None, info: ValidationInfo) -> Path | None:
        needs_file = info.data.get("prefilter") not in ("none", "pipeline", "open_clip")
        if needs_file != (weights is not None):
            raise ValueError("to be given if, and only if, `similarity.prefilter` is a descriptor made of a file")
        return weights

    @field_validator("prefilter")
    @classmethod
    def _prefilter_is_a_descriptor(cls, prefilter: str) -> str:
        names = ("none", "pipeline", *(name for name in DESCRIPTORS if name != "latents"))
        if prefilter not in names:
            raise ValueError(f"to be one of {', '.join(names)}")
        return prefilter

    @field_validator("floor")
    @classmethod
    def _floor_is_at_most_tau(cls, floor: float | None, info: ValidationInfo) -> float | None:
        if floor is not None and floor > info.data.get("tau", 1.0):
            raise ValueError(f"to be at most tau ({info.data['tau']})")
        return floor
