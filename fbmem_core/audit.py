"""An audit file: what is audited, against which references, and how. One YAML file, validated when it is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from reprlib import Repr
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fbmem_core.errors import InputError

Region = Literal["masked", "composite"]
Rule = Literal["paper", "release", "regions"]
Layers = Literal["released", "all"]
Mode = Literal["paper", "released"]
Encoder = Literal["pipeline", "open_clip"]
Metric = Literal["brisque", "clip", "dbcnn", "qalign"]
Attack = Literal["paraphrase", "adversarial", "control"]
UNMITIGATED = "none"  # the method of the model as it is
# by what a pair of images is compared
CRITERIA = ("full", "foreground", "background", "average")
DEVICE_PATTERN = r"^(auto|cpu|mps|cuda(:\d+)?)$"
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]*$"

# arXiv 2508.12148: the threshold of similarity and the share of area below which a region counts as absent
TAU = 0.8
BETA = 0.03
NUM_CLUSTERS = 12
FLOOR_BELOW_TAU = 0.2  # how far below tau every reference is found
# the smallest side at which five scales of an 11 px window fit: (11 - 1) * 2**4 + 1
MIN_SIMILARITY_SIZE = 161


_SHORT = Repr()  # YAML's aliases can make a list whose text fills the memory
_SHORT.maxlevel = 2


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
    """How generations and references are compared. The first region and rule are the ones that summaries speak of.

    With a `prefilter` only the references whose embeddings are near are compared: the `num_candidates` nearest by the
    whole image, its foreground and its background. Its recall is measured on `num_checked` generations.
    """

    size: int = Field(512, ge=MIN_SIMILARITY_SIZE, le=4096)
    region: Annotated[list[Region], BeforeValidator(_as_list), Field(min_length=1)] = ["masked"]
    rule: Annotated[list[Rule], BeforeValidator(_as_list), Field(min_length=1)] = ["paper"]
    tau: float = Field(TAU, gt=0, le=1)
    beta: float = Field(BETA, ge=0, lt=0.5)
    top_k: int = Field(5, ge=1)
    floor: float | None = Field(None, ge=0, le=1)
    device: str = Field("auto", pattern=DEVICE_PATTERN)
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

    `unmemorized_prompts` is the file of prompts over which usual activations and the threshold are measured; without it
    those prompts of the audit count whose images are all labelled NM. `threshold` in the place of a calibrated one.
    """

    unmemorized_prompts: Path | None = None
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


def load_audit(path: Path) -> Audit:
    """Read and validate an audit file.

    Raises:
        InputError: The file is missing or no YAML mapping, a key is unknown, a value is impossible, or a path in it
            leads nowhere. The message names the file, the key and the cure.
    """
    if not path.is_file():
        raise InputError("an audit file", "no such file", where=path, cure="Give the path of a YAML audit file.")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no date, too long a number
        reason = str(error).replace("\n", " ")
        raise InputError("a YAML mapping", f"text that is no YAML ({reason})", where=path, cure="Mend it.") from None
    if not isinstance(data, dict):
        raise InputError("a YAML mapping", type(data).__name__, where=path, cure="Write keys such as `name:`.")
    try:
        audit = Audit.model_validate(data)
    except ValidationError as error:
        raise _one_line(error, path) from None
    return _resolve_paths(audit, path)


def parse_similarity(values: dict[str, Any]) -> Similarity:
    """How images are compared, from the options of a command; raises InputError as `load_audit` does."""
    try:
        return Similarity.model_validate(values)
    except ValidationError as error:
        raise _one_line(error, "the options") from None


def dump_audit(audit: Audit) -> str:
    """The audit as JSON with every default written out; `Audit.model_validate_json` reads it back."""
    return json.dumps(audit.model_dump(mode="json"), indent=1, sort_keys=True)


def _resolve_paths(audit: Audit, file: Path) -> Audit:
    folder = file.parent.resolve()
    changes: dict[str, Any] = {}
    for key in ("prompts", "references", "truth"):
        value = getattr(audit, key)
        if value is None:
            continue
        changes[key] = folder / value
        if not _exists(changes[key]):
            raise InputError(f"{key} to be an existing path", f"`{value}`", where=file, cure=_relative_cure(key))
    if _is_path(audit.checkpoint, folder):
        directory = folder / Path(audit.checkpoint).expanduser()
        if not (_exists(directory) and directory.is_dir()):
            cure = _relative_cure("checkpoint") + " A Hugging Face id has the form owner/name."
            raise InputError("checkpoint to be a diffusers directory", f"`{audit.checkpoint}`", where=file, cure=cure)
        changes["checkpoint"] = str(directory.resolve())
    return audit.model_copy(update=changes | _resolve_sections(audit, file))


def _resolve_sections(audit: Audit, file: Path) -> dict[str, Any]:
    sections: dict[str, dict[str, Any]] = {}
    if audit.segmentation.model.endswith(".onnx"):
        sections["segmentation"] = {"model": str(_existing("segmentation.model", audit.segmentation.model, file))}
    prompts = audit.neurons.unmemorized_prompts
    if prompts is not None:
        sections["neurons"] = {"unmemorized_prompts": _existing("neurons.unmemorized_prompts", prompts, file)}
    weights = file.parent.resolve() / audit.clusters.weights
    if _exists(weights) and weights.is_file():  # else it is a tag
        sections["clusters"] = {"weights": str(weights)}
    return {name: getattr(audit, name).model_copy(update=values) for name, values in sections.items()}


def _existing(key: str, value: Path | str, file: Path) -> Path:
    path = file.parent.resolve() / value
    if not (_exists(path) and path.is_file()):
        raise InputError(f"{key} to be an existing file", f"`{value}`", where=file, cure=_relative_cure(key))
    return path.resolve()


def _is_path(checkpoint: str, folder: Path) -> bool:
    looks_like_path = checkpoint.startswith((".", "/", "~")) or checkpoint.count("/") != 1
    return looks_like_path or _exists(folder / checkpoint)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _relative_cure(key: str) -> str:
    return f"Mend `{key}`: paths are relative to the audit file's folder."


def _one_line(error: ValidationError, path: Path | str) -> InputError:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-"))
    if first["type"] == "extra_forbidden":
        known = sorted(_known_keys(first["loc"][:-1]))
        return InputError(f"only known keys ({', '.join(known)})", f"`{key}`", where=path, cure="Remove or rename it.")
    if first["type"] == "missing":
        return InputError(f"the key `{key}`", "none", where=path, cure=f"Add `{key}:`.")
    what = first["msg"].removeprefix("Input ").removeprefix("Value error, ").replace("should ", "to ", 1)
    got = f"`{_SHORT.repr(first['input']) if isinstance(first['input'], (list, dict)) else first['input']}`"
    return InputError(f"{key} {what}", got, where=path, cure=f"Change `{key}`.")


def _known_keys(loc: tuple[int | str, ...]) -> list[str]:
    model: Any = Audit
    for part in loc:
        model = model.model_fields[str(part)].annotation
    return list(model.model_fields)
