"""What an audit file may say: what is audited, against which references, and how. `audit_file` loads one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

Masking = Literal["masked", "composite"]
Alignment = Literal["none", "fast", "thorough"]
Rule = Literal["paper", "released", "per_region"]
Layers = Literal["released", "all"]
Mode = Literal["paper", "released"]
Encoder = Literal["pipeline", "open_clip"]
Metric = Literal["brisque", "clip", "dbcnn", "qalign"]
Attack = Literal["paraphrase", "adversarial", "control"]
UNMITIGATED = "none"  # the method of the model as it is
# by what a pair of images is compared
REGIONS = ("full", "foreground", "background", "average")
SIMILARITIES = ("full_similarity", "foreground_similarity", "background_similarity")  # as columns of tables
DEVICE_PATTERN = r"^(auto|cpu|mps|cuda(:\d+)?)$"
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]*$"

# arXiv 2508.12148: the threshold of similarity and the share of area below which a region counts as absent
TAU = 0.8
BETA = 0.03
NUM_CLUSTERS = 12
FLOOR_BELOW_TAU = 0.2  # how far below tau every reference is found
# the smallest side at which five scales of an 11 px window fit: (11 - 1) * 2**4 + 1
MIN_SIMILARITY_SIZE = 161


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Sampling(_Section):
    """How images are sampled. Image k of a prompt has the seed `seed + k`, whatever is sampled beside it."""

    steps: int = Field(50, ge=1, le=1000)
    guidance_scale: float = Field(7.5, ge=0, le=100)
    seed: int = Field(0, ge=0, lt=2**32)  # torch's CPU generator drops higher bits: their images would be the same
    height: int = Field(512, ge=8, multiple_of=8)
    width: int = Field(512, ge=8, multiple_of=8)
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    device: str = Field("auto", pattern=DEVICE_PATTERN)
    batch_size: int = Field(8, ge=1)


class Segmentation(_Section):
    """`model` is a rembg model name or the path of an ONNX file with U2-Net's interface."""

    model: str = "birefnet-general"


class Similarity(_Section):
    """How generations and references are compared. Summaries and scores use the first masking and rule.

    With a `prefilter` only the references whose embeddings are near are compared: the `num_candidates` nearest by the
    whole image, its foreground and its background. Its recall is measured on `num_checked` generations.
    """

    size: int = Field(512, ge=MIN_SIMILARITY_SIZE, le=4096)
    masking: Annotated[list[Masking], BeforeValidator(_as_list), Field(min_length=1)] = ["masked"]
    rule: Annotated[list[Rule], BeforeValidator(_as_list), Field(min_length=1)] = ["per_region"]
    tau: float = Field(TAU, gt=0, le=1)
    beta: float = Field(BETA, ge=0, lt=0.5)
    top_k: int = Field(5, ge=1)
    floor: float | None = Field(None, ge=0, le=1)
    device: str = Field("auto", pattern=DEVICE_PATTERN)
    alignment: Alignment = "fast"
    prefilter: Literal["none", "pipeline", "open_clip"] = "none"
    num_candidates: int = Field(1000, ge=1)
    num_checked: int = Field(20, ge=0)

    @property
    def lowest(self) -> float:
        """The floor: every reference of at least this similarity is found. tau - 0.2 unless the file says otherwise."""
        return max(self.tau - FLOOR_BELOW_TAU, 0.0) if self.floor is None else self.floor

    @field_validator("floor")
    @classmethod
    def _floor_is_at_most_tau(cls, floor: float | None, info: ValidationInfo) -> float | None:
        if floor is not None and floor > info.data.get("tau", 1.0):
            raise ValueError(f"to be at most tau ({info.data['tau']})")
        return floor


class Clusters(_Section):
    """How prompts are clustered. `model` and `weights` (a tag or a file) are open_clip's; `counts` are compared."""

    encoder: Encoder = "pipeline"
    count: int = Field(NUM_CLUSTERS, ge=1)
    seed: int = Field(1, ge=0, lt=2**32)
    counts: list[Annotated[int, Field(ge=1)]] = [4, 8, NUM_CLUSTERS, 16, 24]
    model: str = "ViT-B-32"
    weights: str = "laion2b_s34b_b79k"


class Neurons(_Section):
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


class Agreement(_Section):
    """How seed agreement is measured: over at most `num_seeds` sampled seeds, at step `num_steps` of sampling.

    Both defaults are chosen on the canary, which samples in 25 steps.
    """

    num_steps: int = Field(7, ge=1, le=1000)
    num_seeds: int = Field(10, ge=2, le=1000)
    threshold: float = Field(0.75, gt=-1, lt=1)


def _as_mitigation(value: Any) -> Any:
    return {"method": value} if isinstance(value, str) else value


class Mitigation(_Section):
    """A method with its options. `name` is what the column `method` calls it, the method's own name by default.

    `num_clusters`, of `nemo_c`, is another number of clusters than the audit's.
    """

    method: str
    name: str = Field("", pattern=r"^[a-z0-9_]*$", max_length=40)
    options: dict[str, float] = {}
    num_clusters: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _method_and_options_are_known(self) -> Mitigation:
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


class Mitigations(_Section):
    """What is tried against memorization, on the first `samples_per_prompt` seeds of each prompt (all by default).

    After it, `attacks` try to bring the memory of `num_attacked` prompts back (all by default), with `attempts` seeds
    for each neighbouring prompt and each optimised embedding; see docs/mitigations.md.
    """

    methods: list[Annotated[Mitigation, BeforeValidator(_as_mitigation)]] = []
    samples_per_prompt: int | None = Field(None, ge=1, le=10_000)
    attacks: list[Attack] = []
    num_attacked: int | None = Field(None, ge=1)
    attempts: int = Field(2, ge=1, le=1000)

    @field_validator("methods")
    @classmethod
    def _names_are_unique(cls, methods: list[Mitigation]) -> list[Mitigation]:
        titles = [method.title for method in methods]
        for title in titles:
            if titles.count(title) > 1 or title == UNMITIGATED:
                raise ValueError(f"to have different names (`{title}` is taken; give it a `name`)")
        return methods


class Quality(_Section):
    """By what the images of mitigations are measured; `clip` takes the model and weights of `clusters`."""

    metrics: list[Metric] = ["brisque", "clip"]


class Diff(_Section):
    """When a checkpoint memorizes more than the one before it: a rise of the share of copies by more than `max_rise`
    that chance gives at most as often as `significance` says."""

    max_rise: float = Field(0.02, ge=0, le=1)
    significance: float = Field(0.05, gt=0, lt=1)


class Audit(_Section):
    """A validated audit. Relative paths were resolved against the folder of the audit file.

    `checkpoint` is a diffusers directory or a Hugging Face id; `truth`, where given, is the table of true labels that
    the audit checks itself against (columns prompt_id, kind, label, reference_ids).
    """

    name: str = Field(pattern=NAME_PATTERN, max_length=60)
    checkpoint: str
    revision: str | None = None
    prompts: Path
    references: Path
    truth: Path | None = None
    samples_per_prompt: int = Field(5, ge=1, le=10_000)
    samples_by_kind: dict[str, Annotated[int, Field(ge=1, le=10_000)]] = {}
    allow_pickle: bool = False
    sampling: Sampling = Sampling()
    segmentation: Segmentation = Segmentation()
    similarity: Similarity = Similarity()
    agreement: Agreement = Agreement()
    clusters: Clusters = Clusters()
    neurons: Neurons = Neurons()
    mitigations: Mitigations = Mitigations()
    quality: Quality = Quality()
    diff: Diff = Diff()

    @model_validator(mode="before")
    @classmethod
    def _sections_may_be_empty(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data

    def seeds(self, kind: str | None) -> range:
        """The seeds of one prompt of this kind."""
        return range(
            self.sampling.seed, self.sampling.seed + self.samples_by_kind.get(kind or "", self.samples_per_prompt)
        )
