"""The report: one HTML file that needs no network, and the same numbers as CSV and JSON beside it."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fbmem_core.report.colors import LOOKS, UNDECIDED
from fbmem_core.report.evidence import Evidence
from fbmem_core.report.panels import SIDE, THUMBNAIL, Panels
from fbmem_core.report.redaction import redact
from fbmem_core.report.reviews import VERDICTS, agreement_of_reviewers, summary_of_reviews
from fbmem_core.store.tables import Store

if TYPE_CHECKING:
    from jinja2 import Template

REPORTS_DIR = "reports"
_MAX_CARDS = 150
_MAX_SEEDS = 24
_MAX_SIDE_BY_SIDE = 12
_COLUMNS = (
    "prompt_id", "prompt", "kind", "k", "n", "share", "low", "high", "best_label", "best_reference_id",
    "best_similarity", "best_seed", "num_references", "reference_ids",
)  # fmt: skip


def write_report(
    store: Store, evidence: Evidence, *, out: Path | None = None, redacted: bool = False, run_url: str | None = None
) -> Path:
    """Write `report.html`, and `findings.csv` and `report.json` with the same numbers, beside each other.

    Args:
        store: Of the audit.
        evidence: What `gather` gives.
        out: Another file than `reports/<checkpoint>/report.html` below the store.
        redacted: Without pictures, texts, names and addresses: numbers and hashes alone, for those who may not see
            the works themselves.
        run_url: Address of the run in Dagster, if there is one.

    Returns:
        The path of the HTML file.
    """
    if redacted:
        evidence = redact(evidence)
    panels = None if redacted else Panels(store, evidence.checkpoint)
    html = render(store, evidence, panels, run_url=run_url)
    contents = {"report.html": html, "findings.csv": _csv(evidence), "report.json": _json(evidence)}
    if out is not None:
        names = {"report.html": out.name, "findings.csv": f"{out.stem}.csv", "report.json": f"{out.stem}.json"}
        for name, content in contents.items():
            Store(out.parent).write_bytes(names[name], content.encode())
        return out.resolve()
    folder = f"{REPORTS_DIR}/{evidence.checkpoint}{'-redacted' if redacted else ''}"
    paths = [store.write_bytes(f"{folder}/{name}", content.encode()) for name, content in contents.items()]
    return paths[0]


def render(store: Store, evidence: Evidence, panels: Panels | None, *, run_url: str | None = None) -> str:
    """The HTML of a report, self-contained."""
    template = _template("report.html.j2")
    cards = [_card(row, evidence, panels) for row in evidence.findings[:_MAX_CARDS]]
    return template.render(
        e=evidence,
        cards=cards,
        strongest=[card for card in cards if card["pictures"]["generation"]][:6],
        without_card=evidence.findings[_MAX_CARDS:],
        references=[_with_picture(row, panels) for row in evidence.references],
        changes=_changes(evidence, panels, store),
        looks=LOOKS,
        undecided=UNDECIDED,
        bars=_bars(evidence.counts),
        checks=_checks(evidence.checks),
        histogram=_histogram(evidence),
        settings=_settings(evidence.settings),
        reviewed=summary_of_reviews(evidence.reviews, len(evidence.findings)),
        kappas=agreement_of_reviewers(evidence.reviews),
        num_left_out=panels.num_left_out if panels is not None else 0,
        has_pictures=panels is not None,
        store=str(store.root),
        run_url=run_url,
        side=SIDE,
        thumbnail=THUMBNAIL,
        style=_asset("report.css"),
        script=_asset("report.js"),
    )


def render_review(store: Store, evidence: Evidence, *, token: str, message: str = "", reviewer: str = "") -> str:
    """The HTML of the local page on which people give their verdicts; `token` stands in its forms."""
    panels = Panels(store, evidence.checkpoint)
    findings = [
        row
        | {
            "generation": panels.generation(row["best"]),
            "reference": panels.reference(row["best"]["reference_path"]),
            "reviews": [review for review in evidence.reviews if review["prompt_id"] == row["prompt_id"]],
        }
        for row in evidence.findings[:_MAX_CARDS]
    ]
    return _template("review.html.j2").render(
        e=evidence,
        findings=findings,
        summary=summary_of_reviews(evidence.reviews, len(evidence.findings)),
        verdicts=VERDICTS,
        token=token,
        message=message,
        reviewer=reviewer,
    )


def _template(name: str) -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fbmem_core.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _percent,
        "number": _number,
        "duration": _duration,
        "name_of_source": _name_of_source,
    }
    return environment.get_template(name)


def _asset(name: str) -> str:
    return files("fbmem_core.report").joinpath("templates", name).read_text(encoding="utf-8")


def _card(row: dict[str, Any], evidence: Evidence, panels: Panels | None) -> dict[str, Any]:
    """A finding with its pictures, its seeds and its references."""
    best, images = row["best"], evidence.images[row["prompt_id"]]
    pictures: dict[str, str | None] = dict.fromkeys(
        ("generation", "reference", "foreground", "reference_foreground", "difference")
    )
    if panels is not None:
        pictures = {
            "generation": panels.generation(best),
            "reference": panels.reference(best["reference_path"]),
            "foreground": panels.foreground(best),
            "reference_foreground": panels.reference_foreground(best),
            "difference": panels.difference(best),
        }
    seeds = [
        image | {"picture": panels.generation(image, side=THUMBNAIL) if panels is not None else None}
        for image in images[:_MAX_SEEDS]
    ]
    counts: dict[str, int] = {}
    for image in images:
        if image["is_copy"]:
            counts[image["reference_id"]] = counts.get(image["reference_id"], 0) + 1
    regions = [
        {"name": name, "similarity": best[f"{name}_similarity"], "reference_id": best[f"{name}_reference_id"]}
        for name in ("full", "foreground", "background")
    ]
    return row | {
        "pictures": pictures, "seeds": seeds, "num_more_seeds": len(images) - len(seeds), "regions": regions,
        "reference_counts": sorted(counts.items(), key=lambda item: -item[1]), "anchor": row["prompt_id"],
        "is_near_threshold": abs(best["margin"] or 1.0) < 0.05, "change": _change_of(row["prompt_id"], evidence),
        "reviews": [review for review in evidence.reviews if review["prompt_id"] == row["prompt_id"]],
        "sql": f"select * from findings where checkpoint = '{evidence.checkpoint}' and prompt_id = "
        f"'{str(row['prompt_id']).replace(chr(39), chr(39) * 2)}'",
        "reproduce": f"fbmem reproduce {row['prompt_id']}/{best['seed']} --partition {evidence.checkpoint}",
    }  # fmt: skip


def _change_of(prompt_id: str, evidence: Evidence) -> str:
    return next((row["change"] for row in evidence.changes["rows"] if row["prompt_id"] == prompt_id), "")


def _with_picture(row: dict[str, Any], panels: Panels | None) -> dict[str, Any]:
    path = row["reference_path"]
    return row | {"picture": panels.reference(path, side=THUMBNAIL) if panels is not None else None}


def _changes(evidence: Evidence, panels: Panels | None, store: Store) -> list[dict[str, Any]]:
    """The prompts that changed, the first of them with one image of each checkpoint."""
    rows = []
    for number, row in enumerate(evidence.changes["rows"]):
        pictures: list[str | None] = [None, None]
        if panels is not None and number < _MAX_SIDE_BY_SIDE:
            keys = (evidence.changes["previous"], evidence.checkpoint)
            pictures = [_first_image(store, key, row["prompt"], panels) for key in keys]
        rows.append(row | {"before": pictures[0], "after": pictures[1]})
    return rows


def _first_image(store: Store, checkpoint: str, prompt: str, panels: Panels) -> str | None:
    prompts = store.read("prompts", checkpoint)
    ids = prompts.filter(prompts["prompt"] == prompt)["prompt_id"].to_list()
    images = store.read("generations", checkpoint, shard="none")
    matching = images.filter(images["prompt_id"].is_in(ids))
    return panels.generation({"path": matching["path"][0]}, side=THUMBNAIL) if len(matching) else None


def _bars(counts: dict[str, int]) -> list[dict[str, Any]]:
    """The parts of the bar of labels, with the places where they begin, in percent."""
    total = max(sum(counts.values()), 1)
    parts, start = [], 0.0
    for label, count in counts.items():
        width = 100 * count / total
        parts.append({"label": label, "count": count, "start": start, "width": width})
        start += width
    return parts


def _checks(checks: list[dict[str, Any]]) -> dict[str, Any]:
    by_status = {status: [row for row in checks if row["status"] == status] for status in ("passed", "failed")}
    applying = len(by_status["passed"]) + len(by_status["failed"])
    return {
        "passed": len(by_status["passed"]), "applying": applying, "failed": by_status["failed"],
        "not_applicable": len(checks) - applying,
    }  # fmt: skip


def _histogram(evidence: Evidence) -> dict[str, Any]:
    """Bars of similarity, stacked by label: places and heights for a drawing of 100 x 100."""
    bins = 20
    totals = [sum(values[at] for values in evidence.similarities.values()) for at in range(bins)]
    most = max([*totals, 1])
    bars = []
    for at in range(bins):
        top = 0.0
        for label, values in evidence.similarities.items():
            height = 100 * values[at] / most
            if height:
                bars.append({"label": label, "x": at * 100 / bins, "y": top, "height": height, "count": values[at],
                             "low": at / bins, "high": (at + 1) / bins})  # fmt: skip
            top += height
    return {"bars": bars, "most": most, "width": 100 / bins}


def _settings(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Settings with their defaults; those of an audit that have none always differ."""
    from fbmem_core.audit.config import Audit

    defaults: dict[str, Any] = {}
    for name, information in Audit.model_fields.items():
        default = information.get_default(call_default_factory=True)
        defaults[name] = default.model_dump(mode="json") if hasattr(default, "model_dump") else default
    rows = []
    for name, value in sorted(_flat(settings).items()):
        default = _flat(defaults).get(name)
        rows.append({"name": name, "value": value, "is_default": value == default})
    return rows


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _csv(evidence: Evidence) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in evidence.findings:
        values = [row[name] for name in _COLUMNS]
        writer.writerow([";".join(value) if isinstance(value, list) else value for value in values])
    return out.getvalue()


def _json(evidence: Evidence) -> str:
    return json.dumps(asdict(evidence), indent=1, default=str, ensure_ascii=False)


def _name_of_source(source: str) -> str:
    """A hub id as it is, of a path its last two parts: the whole path stands under provenance."""
    return "/".join(Path(source).parts[-2:]) if Path(source).is_absolute() else source


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
