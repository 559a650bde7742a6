"""A slice of the shipped canary: few prompts, few references, the real model and the real segmenter."""

import csv
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from filelock import FileLock
from PIL import Image
from polars.testing import assert_frame_equal

from fbmem_core.store.schemas import TABLES
from fbmem_core.store.tables import Store

PROJECT = Path(__file__).parents[2]
CANARY = PROJECT / "data" / "canary"
SLICE_PROMPTS = ("clockwork_owl-0", "zibble-0", "hotel_azul-0", "public-00")
SLICE_REFERENCES = (
    "clockwork_owl", "zibble", "hotel_azul", "quillby", "kestrel_studio", "public_000", "public_001", "public_002",
)  # fmt: skip
NUM_SEEDS = 2
MITIGATIONS = {
    "methods": ["random", "nemo_c", {"method": "fade", "options": {"num_non_memorized": 20, "num_steps": 3}}],
    "attacks": ["paraphrase"],
    "num_attacked": 3,
    "attempts": 1,
}
TO_LABELS = ("prompts", "reference_images", "generations", "masks", "neighbors", "similarities", "labels", "rejected")
_TIMED = {"checkpoints", "records", "checks"}  # which say when something was done
WHOLE_GRAPH = tuple(name for name in TABLES if name not in _TIMED)
# what `make` exports and the command sets when they are missing
VARIABLES = ("DAGSTER_HOME", "FBMEM_DAGSTER", "FBMEM_STORE")


@dataclass(frozen=True)
class Run:
    """What one call of the command line left behind."""

    exit_code: int
    stdout: str
    stderr: str


def make_slice(folder: Path, *, prompts=SLICE_PROMPTS, references=SLICE_REFERENCES, **changes) -> Path:
    """An audit file over a part of the canary, with its own prompt file and folder of references."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, key, kept in (("prompts.csv", "prompt_id", prompts), ("truth.csv", "prompt_id", prompts)):
        with (CANARY / name).open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row[key] in kept]
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    (folder / "references").mkdir(exist_ok=True)
    for name in references:
        shutil.copy(CANARY / "references" / f"{name}.png", folder / "references")
    audit = yaml.safe_load((PROJECT / "data" / "audits" / "canary.yaml").read_text(encoding="utf-8"))
    audit |= {
        "name": "slice",
        "checkpoint": str(CANARY / "checkpoint"),
        "prompts": "prompts.csv",
        "references": "references",
        "truth": "truth.csv",
        "samples_per_prompt": NUM_SEEDS,
        "segmentation": {"model": str(CANARY / "segmenter.onnx")},
        "clusters": {"count": 3, "counts": [2]},
        "neurons": {
            "non_memorized_prompts": str(CANARY / "non_memorized_prompts.txt"),
            "num_seeds": 2, "num_threshold_prompts": 20,
        },
        "robustness": {"num_images": 4},
        "mitigations": {},
        "thresholds": {},
    } | changes  # fmt: skip
    path = folder / "slice.yaml"
    path.write_text(yaml.safe_dump(audit), encoding="utf-8")
    return path


def whole_slice(folder: Path) -> Path:
    """A slice with mitigations and an attack, sampled image by image, so that equal means equal to the last bit."""
    sampling = yaml.safe_load((PROJECT / "data" / "audits" / "canary.yaml").read_text(encoding="utf-8"))["sampling"]
    return make_slice(folder, mitigations=MITIGATIONS, sampling=sampling | {"batch_size": 1})


@pytest.fixture
def fbmem(monkeypatch):
    """Call the command line in this process: `fbmem("audit", file, "--store", store)`."""
    from fbmem_assets.commands.main import main

    def call(*arguments) -> Run:
        for name in VARIABLES:  # set and deleted, so that what the command itself sets is undone after the test
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Run(result.exit_code, result.stdout, result.stderr)

    return call


def _audit(file: Path, store: Path, *options: str) -> Run:
    """Call `fbmem audit` once for all tests of a session; the variables that it sets are undone."""
    from fbmem_assets.commands.main import main

    with pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.setenv(name, "")
            patch.delenv(name)
        result = CliRunner().invoke(main, ["audit", str(file), "--store", str(store), *options])
    return Run(result.exit_code, result.stdout, result.stderr)


@pytest.fixture(scope="session")
def audited(tmp_path_factory, request, tiny_sscd):
    """(store, audit file, finished call) of one whole audit of the slice; tests only read it, on whatever process."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if hasattr(request.config, "workerinput") else folder) / "audited"
    file, call = folder / "slice" / "slice.yaml", folder / "call.json"
    with FileLock(f"{folder}.lock"):
        if not call.is_file():
            canary = yaml.safe_load((PROJECT / "data" / "audits" / "canary.yaml").read_text(encoding="utf-8"))
            make_slice(
                file.parent,
                mitigations=MITIGATIONS,
                quality={"metrics": ["clip"]},
                similarity=canary["similarity"] | {"sscd": str(tiny_sscd)},
                thresholds={"held_out": str(CANARY / "held_out"), "non_memorized_kinds": ["public"]},
            )
            call.write_text(json.dumps(asdict(_audit(file, folder / "store"))))
    return folder / "store", file, Run(**json.loads(call.read_text()))


@pytest.fixture(scope="session")
def tiny_audit(tmp_path_factory, tiny_checkpoint, tiny_segmenter):
    """An audit of four images by untrained networks, which takes seconds up to its labels."""
    folder = tmp_path_factory.mktemp("audit")
    (folder / "references").mkdir()
    for number in range(3):
        Image.effect_noise((64, 64), 40 + number).convert("RGB").save(folder / "references" / f"{number}.png")
    (folder / "prompts.txt").write_text("a cat\nan owl\n")
    audit = {
        "name": "tiny", "checkpoint": str(tiny_checkpoint), "prompts": "prompts.txt", "references": "references",
        "samples_per_prompt": 2, "segmentation": {"model": str(tiny_segmenter)}, "similarity": {"size": 176},
        "sampling": {"steps": 1, "height": 64, "width": 64, "device": "cpu", "batch_size": 1},
    }  # fmt: skip
    (folder / "audit.yaml").write_text(yaml.safe_dump(audit))
    return folder / "audit.yaml"


@pytest.fixture(scope="session")
def tiny_audited(tiny_audit, tmp_path_factory):
    """The store of the audit when nothing went wrong; tests only read it."""
    import torch

    store = tmp_path_factory.mktemp("tiny_audited")
    torch.set_num_threads(1)
    done = _audit(tiny_audit, store, "--until", "labels")
    assert done.exit_code == 0, done.stderr
    found = Store(store)
    [key] = found.partitions("checkpoints")
    assert found.read("labels", key).height == 4
    return found


def assert_same_audit(store, other, tables=TO_LABELS):
    """The one partition of both has the same rows, up to the labels by default."""
    [key] = store.partitions("checkpoints")
    for table in tables:
        assert_frame_equal(store.read(table, key), other.read(table, key))
    assert store.read("labels", key).height >= 4


def mark_finished(store, key, *names):
    """Record assets as finished, where a test writes their tables itself."""
    for name in names:
        row = dict.fromkeys(TABLES["records"].columns) | {"asset": name, "status": "finished"}
        del row["checkpoint"]
        store.write("records", key, [row], shard=name)
