"""Stage scores: how much memory each mitigation removes, at what price, and whether it comes back."""

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

from fbmem_assets.orchestration.checks import Verdict, table_check
from fbmem_assets.orchestration.resources import AuditStore
from fbmem_assets.orchestration.tables import markdown_table, picture, table_asset, table_result
from fbmem_assets.stages.labels import count_references
from fbmem_core.audit.results import BASELINE, MITIGATED, AuditedCheckpoint
from fbmem_core.mitigation import UNMITIGATED

if TYPE_CHECKING:
    from fbmem_core.evaluation.scores import Labels

STAGE = "scores"
MEMORIZED, NON_MEMORIZED = "memorized", "non-memorized"
_IMAGE = ["method", "prompt_id", "seed"]
# what the method table shows of the price, and of which prompts
_PRICES = {
    "twin_similarity": MEMORIZED,
    "diversity": MEMORIZED,
    "side_effect": NON_MEMORIZED,
    "alignment": NON_MEMORIZED,
}


@table_asset(table="mitigation_scores", stage=STAGE, deps=["labels", "mitigated_labels"])
def mitigation_scores(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per (method, weights): mean fall of severity over memorized prompts' images, matched by prompt and seed.

    Memorized prompts are those with an image that is labelled VM, FM or BM. `achievable` is the severity before: the
    score if nothing were left. The interval is a bootstrap over what is independent: prompts that copy a common
    reference are one unit. Writes `label_transitions` and
    `mitigation_differences` too.
    """
    from fbmem_core.evaluation.intervals import label_units
    from fbmem_core.evaluation.scores import label_transitions, mitigation_score, score_difference

    audit = store.open(context.partition_key)
    units: dict[Hashable, Hashable] = {name: unit for name, unit in label_units(audit.summary_labels()).items()}
    scores: list[dict[str, Any]] = []
    transitions: list[dict[str, Any]] = []
    methods = before_and_after(audit)
    for method, before, after in methods:
        for weights in ("severity", "released") if before else ():
            score = mitigation_score(before, after, weights=weights, units=units)  # type: ignore[arg-type]
            scores.append({"method": method, "weights": weights, **vars(score)})
        transitions += [
            {"method": method, "before": first, "after": second, "num_generations": count}
            for (first, second), count in label_transitions(before, after).items()
        ]
    differences = [
        {"method": method, "other": rival, **vars(score_difference(before, after, labels, units=units))}
        for method, before, after in methods
        for rival, _, labels in methods
        if before and rival != method
    ]
    audit.write("mitigation_scores", scores)
    audit.write("label_transitions", transitions)
    audit.write("mitigation_differences", differences)
    table = audit.read("mitigation_scores")
    return table_result(
        audit,
        "mitigation_scores",
        table,
        differences=markdown_table(differences),
        transitions=markdown_table([row for row in transitions if row["num_generations"]]),
        bars=picture(_label_bars(audit), "labels of memorized prompts by method"),
        shares=picture(_share_plot(audit), "score against share of neurons"),
        one_to_many=picture(_one_to_many_plot(audit), "references that a prompt matches"),
    )


@table_check(mitigation_scores, severity=dg.AssetCheckSeverity.WARN)
def no_mitigated_image_was_lost(audit: AuditedCheckpoint) -> Verdict:
    """Check that every image that was sampled under a mitigation is labelled, and so is the one without it."""
    scores = audit.read("mitigation_scores").filter(pl.col("weights") == "severity")
    if scores.is_empty():
        return Verdict(None, "no mitigation was scored")
    num_missing = dict(scores.filter(pl.col("num_missing") > 0).select("method", "num_missing").iter_rows())
    sentence = f"of {len(scores)} mitigations {len(num_missing)} have images without a label"
    return Verdict(not num_missing, sentence, {"missing": str(num_missing), "methods": len(scores)})


def method_table(audit: AuditedCheckpoint) -> pl.DataFrame:
    """One row per method, `none` first: score with its interval, labels left, share of neurons, price, what returns.

    Labels and quality are of the prompts and seeds that mitigations were tried on; `side_effect` is that of
    non-memorized prompts, `paraphrase` and `adversarial` the share of attempts that bring the memory back.
    """
    names = [UNMITIGATED, *audit.method_names]
    scores = audit.read("mitigation_scores").filter(pl.col("weights") == "severity")
    attempts = (
        audit.read("attacks")
        .group_by("method", "attack")
        .agg((pl.col("num_returned").sum() / pl.col("num_attempts").sum()).alias("share"))
    )
    columns = [
        scores.select("method", "score", "low", "high", "achievable"),
        _rates(audit).select("method", "VM", "FM", "BM"),
        audit.read("mitigations").select("method", "share"),
        *(_price(audit, metric, prompts) for metric, prompts in _PRICES.items()),
        *(
            attempts.filter(pl.col("attack") == attack).select("method", pl.col("share").alias(attack))
            for attack in audit.config.mitigations.attacks
        ),
    ]
    table = pl.DataFrame({"method": names})
    for part in columns:
        table = table.join(part, on="method", how="left", maintain_order="left")
    return table[[column.name for column in table if column.name not in _PRICES or not column.is_null().all()]]


def _price(audit: AuditedCheckpoint, metric: str, prompts: str) -> pl.DataFrame:
    rows = audit.read("image_quality").filter((pl.col("metric") == metric) & (pl.col("prompts") == prompts))
    return rows.select("method", pl.col("value").alias(metric))


def _rates(audit: AuditedCheckpoint) -> pl.DataFrame:
    """Share of each label among memorized prompts' images, by method, over the same prompts and seeds."""
    labels = _matched_labels(audit)
    return labels.group_by("method").agg(
        *((pl.col("label") == label).mean().alias(label) for label in ("VM", "FM", "BM", "NM"))
    )


def _matched_labels(audit: AuditedCheckpoint) -> pl.DataFrame:
    """The labels of memorized prompts that `none` and every mitigation have an image for."""
    non_memorized = audit.non_memorized_prompts
    after = audit.summary_labels(MITIGATED)
    before = audit.summary_labels(BASELINE)
    if len(after):
        before = before.join(after.select("prompt_id", "seed").unique(), on=["prompt_id", "seed"], how="semi")
    both = pl.concat([before, after]).filter(~pl.col("prompt_id").is_in(non_memorized))
    return both.select(*_IMAGE, "label")


def before_and_after(audit: AuditedCheckpoint) -> "list[tuple[str, Labels, Labels]]":
    """Labels before and after by method, in the order of the audit file."""
    labels = _matched_labels(audit)
    labels_of = {
        str(method): {(prompt_id, seed): label for _, prompt_id, seed, label in rows.iter_rows()}
        for (method,), rows in labels.group_by("method")
    }
    return [(name, labels_of.get(UNMITIGATED, {}), labels_of[name]) for name in audit.method_names if name in labels_of]


def _label_bars(audit: AuditedCheckpoint) -> str:
    from fbmem_core.report.plots import stacked_bar_plot

    rates = {row["method"]: row for row in _rates(audit).to_dicts()}
    names = [UNMITIGATED, *audit.method_names]
    shares = {
        label: {name: rates[name][label] for name in names if name in rates} for label in ("VM", "FM", "BM", "NM")
    }
    return stacked_bar_plot(shares, title="Labels of memorized prompts", label="share of images")


def _share_plot(audit: AuditedCheckpoint) -> str:
    shares = dict(audit.read("mitigations").select("method", "share").iter_rows())
    return _scatter(audit, shares, title="Score against share of neurons", x_label="share of what was searched")


def _scatter(audit: AuditedCheckpoint, x: dict[str, float | None], *, title: str, x_label: str) -> str:
    from fbmem_core.report.plots import line_plot

    scores = audit.read("mitigation_scores").filter(pl.col("weights") == "severity")
    points: dict[str, tuple[list[float], list[float | None]]] = {
        method: ([value], [score])
        for method, score in scores.select("method", "score").iter_rows()
        if (value := x.get(method)) is not None
    }
    ends = {method: (low, high) for method, low, high in scores.select("method", "low", "high").iter_rows()}
    return line_plot(
        points, title=title, x_label=x_label, label="mitigation score: mean fall of severity", style="o", intervals=ends
    )


def _one_to_many_plot(audit: AuditedCheckpoint) -> str:
    """Plot how many memorized prompts match how many references, before and after, over the same seeds."""
    from fbmem_core.report.plots import line_plot

    images = audit.read("generations", MITIGATED).select("prompt_id", "seed").unique()
    counts = pl.DataFrame(
        [row for arm in (BASELINE, MITIGATED) for row in count_references(audit, arm, images)],
        schema=audit.read("one_to_many").drop("checkpoint").schema,
    )
    non_memorized = audit.non_memorized_prompts
    shown = counts.filter(~pl.col("prompt_id").is_in(non_memorized))
    most = int(shown["num_references"].max() or 0)  # type: ignore[arg-type]
    series = {
        str(method): (list(range(most + 1)), [float((rows["num_references"] == n).sum()) for n in range(most + 1)])
        for (method,), rows in shown.group_by("method", maintain_order=True)
    }
    return line_plot(
        series, title="References a prompt matches", x_label="references", label="prompts", style="o-", counts=True
    )
