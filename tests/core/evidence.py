"""A store as an audit leaves it, written row by row: no model is needed to test what is made of it."""

import json
from datetime import UTC, datetime

import numpy as np
from PIL import Image

from fbmem_core.audit.config import Audit
from fbmem_core.audit.file import dump_audit
from fbmem_core.store.images import file_sha256
from fbmem_core.store.schemas import TABLES
from fbmem_core.store.tables import Store

KEY = "drawn-0123456789ab"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
PROMPT_WITH_MARKUP = "an owl <script>alert('owl')</script> & a \"cat\""
# prompt_id, text, and per seed (label, full, foreground, background, reference)
DRAWN = (
    ("owl", PROMPT_WITH_MARKUP, [
        ("VM", 0.95, 0.9, 0.97, "r0"), ("VM", 0.9, 0.9, 0.9, "r0"), ("NM", 0.7, 0.75, 0.3, "r0"),
    ]),
    ("mug", "a mug", [("FM", 0.4, 0.9, 0.2, "r1"), ("FM", 0.3, 0.82, 0.1, "r2"), (None, 0.2, None, None, "r1")]),
    ("bay", "a bay", [("BM", 0.5, 0.1, 0.93, "r1"), ("NM", 0.2, 0.1, 0.2, "r1"), ("NM", 0.2, 0.1, 0.2, "r1")]),
    ("sky", "a sky", [("NM", 0.1, 0.2, 0.3, "r1"), ("NM", 0.1, 0.1, 0.2, "r2"), ("NM", 0.2, 0.1, 0.1, "r0")]),
)  # fmt: skip


def blank(table, **values):
    """A row of a table with nothing but these values; `checkpoint` is filled in by the store."""
    return dict.fromkeys(name for name in TABLES[table].columns if name != "checkpoint") | values


def drawn_store(root, *, prompts=DRAWN):
    """A store of one audited checkpoint: four prompts, three seeds each, three references, with files."""
    store = Store(root)
    references = {}
    for number in range(3):
        path = root / "references" / f"r{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        _picture(number).save(path)
        references[f"r{number}"] = path
    store.write("checkpoints", KEY, [
        {"audit": "drawn", "source": "models/drawn", "revision": None, "fingerprint": "01" * 32,
         "architecture": "StableDiffusionPipeline", "created_at": NOW},
    ])  # fmt: skip
    store.write("reference_images", KEY, [
        blank("reference_images", audit="drawn", reference_id=name, path=str(path), sha256=file_sha256(path), width=32,
              height=32, caption=f"picture {name}", url=f"https://pictures.example/{name}", status="ok")
        for name, path in references.items()
    ])  # fmt: skip
    store.write("prompts", KEY, [
        blank("prompts", audit="drawn", prompt_id=name, prompt=text, kind="drawn") for name, text, _ in prompts
    ])  # fmt: skip
    _write_images(store, prompts)
    audit = Audit(name="drawn", checkpoint="models/drawn", prompts="p.csv", references="r", samples_per_prompt=3)
    settings = dump_audit(audit)
    values = {"masking": "masked", "rule": "paper", "tau": 0.8, "beta": 0.03, "size": 512, "floor": 0.6, "steps": 50,
              "num_prompts": len(prompts), "num_references": 3, "num_generations": 3 * len(prompts),
              "samples_per_prompt": 3, "segmenter": "birefnet-general", "settings": settings}  # fmt: skip
    store.write("audit_settings", KEY, [blank("audit_settings", **values)])
    store.write("records", KEY, [
        blank("records", asset=name, table_name=name, status="finished", settings=settings, settings_sha256="0" * 64,
              started_at=NOW, seconds=30.0, fbmem_version="0.1.0", torch="2.0", device="cpu")
        for name in ("generations", "labels")
    ])  # fmt: skip
    store.write("checks", KEY, [
        blank("checks", asset="labels", check_name=name, status=status, severity="ERROR", sentence=name, checked_at=NOW)
        for name, status in (("a", "passed"), ("b", "failed"), ("c", "not_applicable"))
    ])  # fmt: skip
    return store


def _write_images(store, prompts):
    labels, generations, masks, neighbors = [], [], [], []
    for number, (prompt_id, _, seeds) in enumerate(prompts):
        for seed, (label, full, foreground, background, reference) in enumerate(seeds):
            image = {"method": "none", "prompt_id": prompt_id, "seed": seed}
            path = f"images/generations/{KEY}/{prompt_id}-{seed}.png"
            (store.root / path).parent.mkdir(parents=True, exist_ok=True)
            _picture(10 * number + seed).save(store.root / path)
            generations.append(
                image | {"path": path, "sha256": file_sha256(store.root / path), "width": 32, "height": 32}
            )
            matte = path.replace("generations", "masks")
            (store.root / matte).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (32, 32), 255).save(store.root / matte)
            masks.append(blank("masks", image_kind="generation", image_id=f"none/{prompt_id}/{seed}", path=matte,
                               foreground_fraction=0.5, segmenter="s", status="ok"))  # fmt: skip
            values = {"full_similarity": full, "foreground_similarity": foreground, "background_similarity": background}
            names = {f"{name}_reference_id": reference for name in ("full", "foreground", "background")}
            for rule in ("paper", "released"):  # summaries must count the first alone
                labels.append(blank("labels", **image, masking="masked", rule=rule, label=label, **values, **names))
            for rank, (name, similarity) in enumerate(((reference, full), ("r2", 0.15)), start=1):
                neighbors.append(image | {
                    "masking": "masked", "region": "full", "rank": rank, "reference_id": name,
                    "similarity": similarity, "complete": True, "transform": "whole",
                })  # fmt: skip
    for table, rows in {"labels": labels, "generations": generations, "masks": masks, "neighbors": neighbors}.items():
        store.write(table, KEY, rows, shard="none")


def _picture(number):
    random = np.random.default_rng(number)
    return Image.fromarray(random.integers(0, 255, (32, 32, 3), dtype=np.uint8))


def settings_of(store):
    """The frozen settings."""
    return json.loads(store.read("audit_settings", KEY)["settings"][0])
