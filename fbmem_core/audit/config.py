"""Schema of an audit file: what is audited, against which references, and how. `audit.file` loads one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)

from fbmem_core.clustering import NUM_CLUSTERS, Encoder
from fbmem_core.diffusion.settings import Mode, SamplingConfig
from fbmem_core.evaluation import Attack, DetectorName, Metric
from fbmem_core.mitigation.settings import MitigationConfig, TrialSpec, check_titles
from fbmem_core.neurons import Layers, Search
from fbmem_core.retrieval.settings import SimilarityConfig
from fbmem_core.settings import Section

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]*$"


class SegmentationConfig(Section):
    """`model` is a rembg model name or the path of an ONNX file with U2-Net's interface."""

    model: str = "birefnet-general"


class ClustersConfig(Section):
    """Settings of clustering. `model` and `weights` (a tag or a file) are open_clip's; `counts` are compared."""

    encoder: Encoder = "pipeline"
    count: int = Field(NUM_CLUSTERS, ge=1)
    seed: int = Field(1, ge=0, lt=2**32)
    counts: list[Annotated[int, Field(ge=1)]] = [4, 8, NUM_CLUSTERS, 16, 24]
    model: str = "ViT-B-32"
    weights: str = "laion2b_s34b_b79k"


class NeuronsConfig(Section):
    """Settings of localization.

    `non_memorized_prompts` is the file of prompts over which usual activations and the threshold are measured; without
    it those prompts of the audit count whose images are all labelled NM. `threshold` in the place of a calibrated one.
    `search` drops the neurons of a layer in groups, or `exact`ly one by one as NeMo does.
    """

    non_memorized_prompts: Path | None = None
    layers: Layers = "released"
    mode: Mode = "paper"
    num_seeds: int = Field(10, ge=2, le=1000)
    num_steps: int = Field(50, ge=2, le=1000)
    num_threshold_prompts: int = Field(100, ge=20)
    threshold: float | None = Field(None, gt=0, lt=1)
    seed_margin: float | None = Field(None, ge=0, le=1)
    search: Search = "groups"
    batch_size: int = Field(16, ge=1)


class ThresholdsConfig(Section):
    """Settings of thresholds with a promise: the false-positive `rate`, and pictures that copy nothing.

    `num_controls` references are compared with all others. `non_memorized_kinds` are the kinds of prompts that were
    known not to be memorized before anything was labelled; `held_out` is a folder of pictures that the model never saw.
    """

    rate: float = Field(0.01, gt=0, lt=1)
    num_controls: int = Field(400, ge=0)
    non_memorized_kinds: list[str] = []
    held_out: Path | None = None


class RobustnessConfig(Section):
    """Settings of robustness: how many images, labels in turn, are labelled again under disturbances; 0: none."""

    num_images: int = Field(24, ge=0)


class AgreementConfig(Section):
    """Settings of seed agreement: over at most `num_seeds` sampled seeds, at step `num_steps` of sampling.

    Both defaults are chosen on the canary, which samples in 25 steps.
    """

    num_steps: int = Field(7, ge=1, le=1000)
    num_seeds: int = Field(10, ge=2, le=1000)
    threshold: float = Field(0.75, gt=-1, lt=1)


class DetectionConfig(Section):
    """Detectors without references that are compared, over the first `num_seeds` seeds of the sampling.

    The first `num_calibration_prompts` non-memorized prompts of `neurons` say what is usual, where a detector asks. The
    two that follow a whole sampling, `wen_all_steps` and `bright_ending`, take as long as the images.
    """

    detectors: list[DetectorName] = ["wen", "sail", "anisotropy", "seed_agreement"]
    num_seeds: int = Field(4, ge=2, le=1000)
    num_calibration_prompts: int = Field(40, ge=20)


def _as_mitigation(value: Any) -> Any:
    return {"method": value} if isinstance(value, str) else value


class MitigationsConfig(Section):
    """Mitigations, tried on the first `samples_per_prompt` seeds of each prompt (all by default).

    After it, `attacks` try to bring the memory of `num_attacked` prompts back (all by default), with `attempts` seeds
    for each neighbouring prompt and each optimised embedding; see docs/mitigations.md. `num_neighbors` bounds how many
    prompts `paraphrase` tries for each; `held_out` is a folder of pictures that the model never saw, for `control`.
    """

    methods: list[Annotated[MitigationConfig, BeforeValidator(_as_mitigation)]] = []
    samples_per_prompt: int | None = Field(None, ge=1, le=10_000)
    attacks: list[Attack] = []
    num_attacked: int | None = Field(None, ge=1)
    attempts: int = Field(2, ge=1, le=1000)
    num_neighbors: int = Field(5, ge=1, le=1000)
    held_out: Path | None = None

    @model_validator(mode="after")
    def _control_has_pictures(self) -> MitigationsConfig:
        if "control" in self.attacks and self.held_out is None:
            raise ValueError("to name `held_out`, a folder of pictures the model never saw, for the attack `control`")
        return self

    _names_are_unique = field_validator("methods")(check_titles)

    def trials(self) -> list[TrialSpec]:
        """Methods, each at every strength and draw that is asked for."""
        return [trial for method in self.methods for trial in method.trials()]


class QualityConfig(Section):
    """Metrics of the images of mitigations; `clip` takes the model and weights of `clusters`."""

    metrics: list[Metric] = ["clip"]


class DiffConfig(Section):
    """Limits of what a checkpoint may memorize more than the one before: a rise of the share of copies by `max_rise`
    that chance gives at most as often as `significance` says."""

    max_rise: float = Field(0.02, ge=0, le=1)
    significance: float = Field(0.05, gt=0, lt=1)


class AdapterConfig(Section):
    """A safetensors file on top of the checkpoint: a LoRA, times `weight`, or a textual inversion and its `token`."""

    path: Path
    kind: Literal["lora", "textual_inversion"] = "lora"
    weight: float = 1.0
    token: str = ""


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


class Audit(Section):
    """A validated audit. Relative paths were resolved against the folder of the audit file.

    `references` is a folder or file of pictures, or the URL of one. `checkpoint` is a diffusers directory, a Hugging
    Face id, or a single safetensors file with the directory of `config`, which holds the configs of its architecture;
    `adapters` come on top. `truth`, where given, is the table of true labels that the audit checks itself against
    (columns prompt_id, kind, label, reference_ids).
    `twin` is a diffusers directory of the same model trained without what may be memorized, for `clean_twin`; `policy`
    is a YAML file that weighs what is copied by the tags of its reference.
    """

    name: str = Field(pattern=NAME_PATTERN, max_length=60)
    checkpoint: str
    revision: str | None = None
    config: Path | None = None
    adapters: list[AdapterConfig] = []
    prompts: Path
    references: Annotated[str, BeforeValidator(_as_text)]
    truth: Path | None = None
    twin: Path | None = None
    policy: Path | None = None
    samples_per_prompt: int = Field(5, ge=1, le=10_000)
    samples_by_kind: dict[str, Annotated[int, Field(ge=1, le=10_000)]] = {}
    allow_pickle: bool = False
    sampling: SamplingConfig = SamplingConfig()
    segmentation: SegmentationConfig = SegmentationConfig()
    similarity: SimilarityConfig = SimilarityConfig()
    thresholds: ThresholdsConfig = ThresholdsConfig()
    robustness: RobustnessConfig = RobustnessConfig()
    agreement: AgreementConfig = AgreementConfig()
    detection: DetectionConfig = DetectionConfig()
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
