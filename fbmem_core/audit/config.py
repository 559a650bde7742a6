"""What an audit file may say: what is audited, against which references, and how. `audit_file` loads one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)

from fbmem_core.clustering import NUM_CLUSTERS, Encoder
from fbmem_core.diffusion.settings import Mode, SamplingConfig
from fbmem_core.evaluation import Attack, Metric
from fbmem_core.mitigation import UNMITIGATED
from fbmem_core.neurons import Layers
from fbmem_core.retrieval.settings import SimilarityConfig
from fbmem_core.settings import Section

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]*$"


class SegmentationConfig(Section):
    """`model` is a rembg model name or the path of an ONNX file with U2-Net's interface."""

    model: str = "birefnet-general"


class ClustersConfig(Section):
    """How prompts are clustered. `model` and `weights` (a tag or a file) are open_clip's; `counts` are compared."""

    encoder: Encoder = "pipeline"
    count: int = Field(NUM_CLUSTERS, ge=1)
    seed: int = Field(1, ge=0, lt=2**32)
    counts: list[Annotated[int, Field(ge=1)]] = [4, 8, NUM_CLUSTERS, 16, 24]
    model: str = "ViT-B-32"
    weights: str = "laion2b_s34b_b79k"


class NeuronsConfig(Section):
    """How memorization neurons are found.

    `non_memorized_prompts` is the file of prompts over which usual activations and the threshold are measured; without
    it those prompts of the audit count whose images are all labelled NM. `threshold` in the place of a calibrated one.
    """

    non_memorized_prompts: Path | None = None
    layers: Layers = "released"
    mode: Mode = "paper"
    num_seeds: int = Field(10, ge=2, le=1000)
    num_steps: int = Field(50, ge=2, le=1000)
    num_threshold_prompts: int = Field(100, ge=20)
    threshold: float | None = Field(None, gt=0, lt=1)
    seed_margin: float | None = Field(None, ge=0, le=1)
    batch_size: int = Field(16, ge=1)


class AgreementConfig(Section):
    """How seed agreement is measured: over at most `num_seeds` sampled seeds, at step `num_steps` of sampling.

    Both defaults are chosen on the canary, which samples in 25 steps.
    """

    num_steps: int = Field(7, ge=1, le=1000)
    num_seeds: int = Field(10, ge=2, le=1000)
    threshold: float = Field(0.75, gt=-1, lt=1)


def _as_mitigation(value: Any) -> Any:
    return {"method": value} if isinstance(value, str) else value


class MitigationConfig(Section):
    """A method with its options. `name` is what the column `method` calls it, the method's own name by default.

    `num_clusters`, of `nemo_c`, is another number of clusters than the audit's.
    """

    method: str
    name: str = Field("", pattern=r"^[a-z0-9_]*$", max_length=40)
    options: dict[str, float] = {}
    num_clusters: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _method_and_options_are_known(self) -> MitigationConfig:
        from fbmem_core.mitigation import METHODS

        if self.method not in METHODS:
            raise ValueError(f"to be one of {', '.join(METHODS)}")
        known = METHODS[self.method].defaults if self.options else {}
        if unknown := sorted(self.options.keys() - known.keys()):
            raise ValueError(f"to have no option `{unknown[0]}` ({', '.join(known) or 'there is none'})")
        return self

    @property
    def title(self) -> str:
        """Its name in tables."""
        return self.name or self.method


class MitigationsConfig(Section):
    """What is tried against memorization, on the first `samples_per_prompt` seeds of each prompt (all by default).

    After it, `attacks` try to bring the memory of `num_attacked` prompts back (all by default), with `attempts` seeds
    for each neighbouring prompt and each optimised embedding; see docs/mitigations.md.
    """

    methods: list[Annotated[MitigationConfig, BeforeValidator(_as_mitigation)]] = []
    samples_per_prompt: int | None = Field(None, ge=1, le=10_000)
    attacks: list[Attack] = []
    num_attacked: int | None = Field(None, ge=1)
    attempts: int = Field(2, ge=1, le=1000)

    @field_validator("methods")
    @classmethod
    def _names_are_unique(cls, methods: list[MitigationConfig]) -> list[MitigationConfig]:
        titles = [method.title for method in methods]
        for title in titles:
            if titles.count(title) > 1 or title == UNMITIGATED:
                raise ValueError(f"to have different names (`{title}` is taken; give it a `name`)")
        return methods


class QualityConfig(Section):
    """By what the images of mitigations are measured; `clip` takes the model and weights of `clusters`."""

    metrics: list[Metric] = ["brisque", "clip"]


class DiffConfig(Section):
    """When a checkpoint memorizes more than the one before it: a rise of the share of copies by more than `max_rise`
    that chance gives at most as often as `significance` says."""

    max_rise: float = Field(0.02, ge=0, le=1)
    significance: float = Field(0.05, gt=0, lt=1)


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


class Audit(Section):
    """A validated audit. Relative paths were resolved against the folder of the audit file.

    `references` is a folder or file of pictures, or the URL of one. `checkpoint` is a diffusers directory or a Hugging
    Face id; `truth`, where given, is the table of true labels that the audit checks itself against (columns prompt_id,
    kind, label, reference_ids).
    """

    name: str = Field(pattern=NAME_PATTERN, max_length=60)
    checkpoint: str
    revision: str | None = None
    prompts: Path
    references: Annotated[str, BeforeValidator(_as_text)]
    truth: Path | None = None
    samples_per_prompt: int = Field(5, ge=1, le=10_000)
    samples_by_kind: dict[str, Annotated[int, Field(ge=1, le=10_000)]] = {}
    allow_pickle: bool = False
    sampling: SamplingConfig = SamplingConfig()
    segmentation: SegmentationConfig = SegmentationConfig()
    similarity: SimilarityConfig = SimilarityConfig()
    agreement: AgreementConfig = AgreementConfig()
    clusters: ClustersConfig = ClustersConfig()
    neurons: NeuronsConfig = NeuronsConfig()
    mitigations: MitigationsConfig = MitigationsConfig()
    quality: QualityConfig = QualityConfig()
    diff: DiffConfig = DiffConfig()

    @model_validator(mode="before")
    @classmethod
    def _sections_may_be_empty(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data

    def seeds(self, kind: str | None) -> range:
        """The seeds of one prompt of this kind."""
        return range(
            self.sampling.seed, self.sampling.seed + self.samples_by_kind.get(kind or "", self.samples_per_prompt)
        )
