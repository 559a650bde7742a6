"""Views: the tables that answer a question in one line. Each holds one row per image, prompt, reference or audit."""

from __future__ import annotations

from dataclasses import dataclass

from fbmem_core.store.schemas.evidence import AUDIT_SETTINGS

INTERVALS = "intervals"
INTERVALS_GRAIN = "One row per k of n: its exact (Clopper-Pearson) 95 % interval, for every n that a view needs."
INTERVALS_COLUMNS = {
    "k": ("BIGINT", "successes"),
    "n": ("BIGINT", "trials"),
    "low": ("DOUBLE", "lower end of the exact 95 % interval"),
    "high": ("DOUBLE", "upper end of the exact 95 % interval"),
}


@dataclass(frozen=True)
class View:
    """A view. `columns` says what each column holds; `sql` selects them in this order."""

    name: str
    grain: str
    key: tuple[str, ...]
    columns: dict[str, str]
    sql: str

    def markdown(self) -> str:
        """The section of docs/tables.md."""
        rows = [f"| {name} | {text} |" for name, text in self.columns.items()]
        key = ", ".join(f"`{name}`" for name in self.key)
        head = [f"## {self.name}", "", f"A view. {self.grain} Key: {key}.", "", "| column | |", "|---|---|"]
        return "\n".join([*head, *rows])


_FINDING = {
    "checkpoint": "partition: the audit's name and the hash of its checkpoint",
    "method": "mitigation by its name in the audit file",
    "prompt_id": "name of the prompt",
    "prompt": "text",
    "kind": "group that the prompt file names",
    "seed": "of the initial latents of this image",
    "label": "VM, FM, BM or NM by the audit's first masking and rule; null: undecided",
    "is_copy": "whether the label is VM, FM or BM; null: undecided",
    "region": "full, foreground or background: where it is the copy, or nearest to one",
    "reference_id": "the reference that this region is copied from, or nearest to",
    "similarity": "of that region, 0 to 1",
    "margin": "similarity - tau: below 0 for what is no copy",
    "elicited_by": "ordinary prompt, or a mitigated model's",
    "full_similarity": "MS-SSIM of the whole images",
    "foreground_similarity": "MS-SSIM of the foregrounds",
    "background_similarity": "MS-SSIM of the backgrounds",
    "full_reference_id": "reference of the highest full similarity",
    "foreground_reference_id": "reference of the highest foreground similarity",
    "background_reference_id": "reference of the highest background similarity",
    "transform": "the reference as it was compared: whole, center crop, or how it was moved",
    "foreground_fraction": "share of the image that is foreground",
    "path": "file of the image, below the store",
    "sha256": "of the image",
    "mask_path": "file of its matte, below the store",
    "reference_path": "file of the reference",
    "reference_sha256": "of the reference",
    "reference_url": "where the manifest says the reference comes from",
    "reference_caption": "text that the manifest names",
    "is_fragile": "whether the label flips under a small change of the mask; null: not tried",
}
_FINDINGS_SQL = """
WITH nearest AS (
  SELECT l.*, a.tau, CASE
    WHEN l.label = 'FM' THEN 'foreground'
    WHEN l.label = 'BM' THEN 'background'
    WHEN l.label = 'VM' AND l.full_similarity >= a.tau THEN 'full'
    WHEN l.label = 'VM' AND l.foreground_similarity >= a.tau THEN 'foreground'
    WHEN l.label = 'VM' AND l.background_similarity >= a.tau THEN 'background'
    WHEN l.full_similarity >= greatest(l.full_similarity, l.foreground_similarity, l.background_similarity) THEN 'full'
    WHEN l.foreground_similarity >= greatest(l.foreground_similarity, l.background_similarity) THEN 'foreground'
    WHEN l.background_similarity IS NOT NULL THEN 'background' ELSE 'full' END AS region
  FROM labels l JOIN audit_settings a ON a.checkpoint = l.checkpoint AND a.masking = l.masking AND a.rule = l.rule
  WHERE l.method {method}
), named AS (
  SELECT *,
    CASE region WHEN 'full' THEN full_reference_id WHEN 'foreground' THEN foreground_reference_id
      ELSE background_reference_id END AS reference_id,
    CASE region WHEN 'full' THEN full_similarity WHEN 'foreground' THEN foreground_similarity
      ELSE background_similarity END AS similarity
  FROM nearest
)
SELECT n.checkpoint, {method_column} n.prompt_id, p.prompt, p.kind, n.seed, n.label, n.label <> 'NM' AS is_copy,
  n.region, n.reference_id, n.similarity, n.similarity - n.tau AS margin, {elicited_by} AS elicited_by,
  n.full_similarity, n.foreground_similarity, n.background_similarity, n.full_reference_id, n.foreground_reference_id,
  n.background_reference_id, n.transform, m.foreground_fraction, g.path, g.sha256, m.path AS mask_path,
  r.path AS reference_path, r.sha256 AS reference_sha256, r.url AS reference_url, r.caption AS reference_caption,
  f.is_fragile
FROM named n
LEFT JOIN prompts p ON p.checkpoint = n.checkpoint AND p.prompt_id = n.prompt_id
LEFT JOIN generations g ON g.checkpoint = n.checkpoint AND g.method = n.method AND g.prompt_id = n.prompt_id
  AND g.seed = n.seed
LEFT JOIN masks m ON m.checkpoint = n.checkpoint AND m.image_kind = 'generation'
  AND m.image_id = n.method || '/' || n.prompt_id || '/' || n.seed
LEFT JOIN reference_images r ON r.checkpoint = n.checkpoint AND r.reference_id = n.reference_id
LEFT JOIN fragile_labels f ON f.checkpoint = n.checkpoint AND f.method = n.method AND f.prompt_id = n.prompt_id
  AND f.seed = n.seed
"""
_PROMPTS_SQL = """
WITH counted AS (
  SELECT checkpoint, prompt_id, any_value(prompt) AS prompt, any_value(kind) AS kind,
    count(*) FILTER (is_copy) AS k, count(label) AS n, count(*) - count(label) AS num_undecided,
    count(*) FILTER (label = 'VM') AS vm, count(*) FILTER (label = 'FM') AS fm, count(*) FILTER (label = 'BM') AS bm,
    count(DISTINCT reference_id) FILTER (is_copy) AS num_references,
    list(DISTINCT reference_id ORDER BY reference_id) FILTER (is_copy) AS reference_ids,
    arg_max(seed, (coalesce(is_copy, false), similarity)) AS best_seed,
    arg_max(label, (coalesce(is_copy, false), similarity)) AS best_label,
    arg_max(reference_id, (coalesce(is_copy, false), similarity)) AS best_reference_id,
    arg_max(similarity, (coalesce(is_copy, false), similarity)) AS best_similarity
  FROM findings GROUP BY checkpoint, prompt_id
)
SELECT c.checkpoint, c.prompt_id, c.prompt, c.kind, c.k, c.n, c.k / nullif(c.n, 0) AS share, i.low, i.high,
  c.num_undecided, c.vm, c.fm, c.bm, c.num_references, coalesce(c.reference_ids, []) AS reference_ids, c.best_seed,
  c.best_label, c.best_reference_id, c.best_similarity
FROM counted c LEFT JOIN intervals i ON i.k = c.k AND i.n = c.n
"""
_REFERENCES_SQL = """
SELECT f.checkpoint, f.reference_id, count(*) AS num_images, count(DISTINCT f.prompt_id) AS num_prompts,
  count(*) FILTER (f.label = 'VM') AS vm, count(*) FILTER (f.label = 'FM') AS fm,
  count(*) FILTER (f.label = 'BM') AS bm, max(f.similarity) AS best_similarity,
  arg_max(f.prompt_id, f.similarity) AS best_prompt_id, arg_max(f.seed, f.similarity) AS best_seed,
  arg_max(f.path, f.similarity) AS best_path, any_value(f.reference_path) AS reference_path,
  any_value(f.reference_sha256) AS reference_sha256, any_value(f.reference_url) AS reference_url,
  any_value(f.reference_caption) AS reference_caption
FROM findings f WHERE f.is_copy GROUP BY f.checkpoint, f.reference_id
"""
_AUDITS_SQL = """
WITH made AS (
  SELECT checkpoint, min(started_at) AS started_at, sum(seconds) AS seconds,
    max(fbmem_version) FILTER (asset = 'labels') AS fbmem_version, max("commit") FILTER (asset = 'labels') AS "commit",
    max(python) FILTER (asset = 'labels') AS python, max(torch) FILTER (asset = 'generations') AS torch,
    max(diffusers) FILTER (asset = 'generations') AS diffusers, max(device) FILTER (asset = 'generations') AS device,
    max(run_id) FILTER (asset = 'labels') AS run_id,
    count(DISTINCT settings_sha256) = 1 AS is_uniform
  FROM records GROUP BY checkpoint
)
SELECT c.checkpoint, c.audit, c.source, c.revision, c.architecture, c.fingerprint, c.created_at,
  s.* EXCLUDE (checkpoint), m.fbmem_version, m."commit", m.python, m.torch, m.diffusers, m.device, m.run_id,
  m.started_at, m.seconds, m.is_uniform
FROM checkpoints c JOIN audit_settings s USING (checkpoint) LEFT JOIN made m USING (checkpoint)
"""
_IMAGE_KEY = ("checkpoint", "prompt_id", "seed")


def _of_settings() -> dict[str, str]:
    return {name: text for name, text in AUDIT_SETTINGS.descriptions.items() if name != "checkpoint"}


_ALL = (
    View(
        "findings",
        "One row per image of the audited model, by the audit's first masking and rule: what it copies, how surely.",
        _IMAGE_KEY,
        {name: text for name, text in _FINDING.items() if name != "method"},
        _FINDINGS_SQL.format(method="= 'none'", method_column="", elicited_by="'ordinary prompt'"),
    ),
    View(
        "mitigated_findings",
        "One row per image of a mitigated model: as `findings`, for each method.",
        ("checkpoint", "method", "prompt_id", "seed"),
        _FINDING,
        _FINDINGS_SQL.format(
            method="<> 'none'", method_column="n.method,", elicited_by="'ordinary prompt, under ' || n.method"
        ),
    ),
    View(
        "prompt_findings",
        "One row per prompt: k of its n labelled images are copies, with an exact interval, and of which references.",
        ("checkpoint", "prompt_id"),
        {
            "checkpoint": _FINDING["checkpoint"],
            "prompt_id": "name of the prompt",
            "prompt": "text",
            "kind": "group that the prompt file names",
            "k": "images that are copies",
            "n": "images with a label",
            "share": "k / n",
            "low": "lower end of the exact 95 % interval of share, over seeds",
            "high": "upper end of the exact 95 % interval of share, over seeds",
            "num_undecided": "images without a label",
            "vm": "images labelled VM",
            "fm": "images labelled FM",
            "bm": "images labelled BM",
            "num_references": "distinct references that are copied",
            "reference_ids": "their names",
            "best_seed": "of the most similar copy, or of the image nearest to one",
            "best_label": "its label",
            "best_reference_id": "its reference",
            "best_similarity": "its similarity",
        },
        _PROMPTS_SQL,
    ),
    View(
        "reference_findings",
        "One row per reference that is copied: by how many images and prompts, and how closely.",
        ("checkpoint", "reference_id"),
        {
            "checkpoint": _FINDING["checkpoint"],
            "reference_id": "name of the reference",
            "num_images": "images that copy it",
            "num_prompts": "prompts of these images",
            "vm": "of them labelled VM",
            "fm": "of them labelled FM",
            "bm": "of them labelled BM",
            "best_similarity": "highest similarity of the copied region",
            "best_prompt_id": "prompt of that image",
            "best_seed": "seed of that image",
            "best_path": "file of that image, below the store",
            "reference_path": "file of the reference",
            "reference_sha256": "of the reference",
            "reference_url": "where the manifest says it comes from",
            "reference_caption": "text that the manifest names",
        },
        _REFERENCES_SQL,
    ),
    View(
        "audits",
        "One row per audited checkpoint: every setting that its labels were made with, versions, device, time, hashes.",
        ("checkpoint",),
        {
            "checkpoint": _FINDING["checkpoint"],
            "audit": "name of the audit file",
            "source": "folder or hub id",
            "revision": "commit on the hub",
            "architecture": "class of the pipeline",
            "fingerprint": "hash of weights and configs",
            "created_at": "when it was registered",
            **_of_settings(),
            "fbmem_version": "version of fbmem that labelled",
            "commit": "of fbmem's repository, where it ran from one",
            "python": "version",
            "torch": "version that sampled",
            "diffusers": "version that sampled",
            "device": "that sampled",
            "run_id": "run of Dagster that labelled: /runs/RUN_ID in the UI",
            "started_at": "when the first asset began",
            "seconds": "of all assets together",
            "is_uniform": "whether all its assets were made with the same settings",
        },
        _AUDITS_SQL,
    ),
)
VIEWS: dict[str, View] = {view.name: view for view in _ALL}
