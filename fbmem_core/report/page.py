"""The report: one HTML file that needs no network, and the same numbers as CSV and JSON beside it."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fbmem_core.report.cards import MAX_CARDS, cards_of
from fbmem_core.report.colors import LOOKS, UNDECIDED
from fbmem_core.report.evidence import Evidence
from fbmem_core.report.panels import SIDE, THUMBNAIL, Panels
from fbmem_core.report.redaction import redact
from fbmem_core.report.reviews import VERDICTS, agreement_of_reviewers, summary_of_reviews
from fbmem_core.report.settings_table import settings_rows
from fbmem_core.store.tables import Store

if TYPE_CHECKING:
    from jinja2 import Template

REPORTS_DIR = "reports"
DAGSTER_URL = "http://localhost:3000"  # where `make dev` serves it
_MAX_SIDE_BY_SIDE = 12
_MAX_SHOWN = 36  # of near misses and of undecided images, those with a picture
_METHOD = frozenset({"method", "score", "low", "high", "achievable"})
_COLUMNS = (
    "prompt_id", "prompt", "kind", "k", "n", "share", "low", "high", "best_label", "best_reference_id",
    "best_similarity", "best_seed", "num_references", "reference_ids",
)  # fmt: skip


def write_report(store: Store, evidence: Evidence, *, out: Path | None = None, redacted: bool = False) -> Path:
    """Write `report.html`, and `findings.csv` and `report.json` with the same numbers, beside each other.

    Args:
        store: Of the audit.
        evidence: What `gather` gives.
        out: Another file than `reports/<checkpoint>/report.html` below the store.
        redacted: Without pictures, texts, names and addresses: numbers and hashes alone, for those who may not see
            the works themselves.

    Returns:
        The path of the HTML file.
    """
    if redacted:
        evidence = redact(evidence)
    panels = None if redacted else Panels(store, evidence.checkpoint)
    html = render(store, evidence, panels)
    contents = {"report.html": html, "findings.csv": _csv(evidence), "report.json": _json(evidence)}
    if out is not None:
        names = {"report.html": out.name, "findings.csv": f"{out.stem}.csv", "report.json": f"{out.stem}.json"}
        for name, content in contents.items():
            Store(out.parent).write_bytes(names[name], content.encode())
        return out.resolve()
    folder = f"{REPORTS_DIR}/{evidence.checkpoint}{'-redacted' if redacted else ''}"
    paths = [store.write_bytes(f"{folder}/{name}", content.encode()) for name, content in contents.items()]
    return paths[0]


def render(store: Store, evidence: Evidence, panels: Panels | None) -> str:
    """The HTML of a report, self-contained."""
    template = _template("report.html.j2")
    cards = cards_of(evidence, panels)
    return template.render(
        e=evidence,
        cards=cards,
        strongest=[card for card in cards if card["pictures"]["generation"]][:6],
        without_card=evidence.findings[MAX_CARDS:],
        references=[_with_picture(row, panels) for row in evidence.references],
        changes=_changes(evidence, panels, store),
        looks=LOOKS,
        undecided=UNDECIDED,
        bars=_bars(evidence.counts),
        checks=_checks(evidence.checks),
        histogram=_histogram(evidence),
        settings=settings_rows(evidence.settings),
        near=[_pair(row, panels, number) for number, row in enumerate(evidence.near)],
        undecided_images=[_pair(row, panels, number) for number, row in enumerate(evidence.undecided)],
        reviewed=summary_of_reviews(evidence.reviews, len(evidence.findings)),
        kappas=agreement_of_reviewers(evidence.reviews),
        ways=_ways(evidence),
        columns=[name for name in (evidence.mitigations or [{}])[0] if name not in _METHOD],
        num_left_out=panels.num_left_out if panels is not None else 0,
        has_pictures=panels is not None,
        store=str(store.root),
        dagster_url=DAGSTER_URL,
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
        for row in evidence.findings[:MAX_CARDS]
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
        "small": _small,
        "number": _number,
        "duration": _duration,
        "name_of_source": _name_of_source,
    }
    return environment.get_template(name)


def _asset(name: str) -> str:
    return files("fbmem_core.report").joinpath("templates", name).read_text(encoding="utf-8")


def _with_picture(row: dict[str, Any], panels: Panels | None) -> dict[str, Any]:
    path = row["reference_path"]
    return row | {"picture": panels.reference(path, side=THUMBNAIL) if panels is not None else None}


def _ways(evidence: Evidence) -> list[dict[str, Any]]:
    """Ways of elicitation that were tried, each once."""
    return list({row["way"]: row for row in evidence.elicited}.values())


def _pair(row: dict[str, Any], panels: Panels | None, number: int) -> dict[str, Any]:
    """An image beside the reference that it is nearest to; only the first ones have pictures."""
    if panels is None or number >= _MAX_SHOWN:
        return row | {"picture": None, "reference_picture": None}
    reference = panels.reference(row["reference_path"], side=THUMBNAIL)
    return row | {"picture": panels.generation(row, side=THUMBNAIL), "reference_picture": reference}


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


def _small(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
