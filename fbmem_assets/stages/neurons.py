"""Stage neurons: the value neurons behind each memorized prompt."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

from fbmem_assets.orchestration import needs
from fbmem_assets.orchestration.checks import Verdict, table_check
from fbmem_assets.orchestration.progress import track
from fbmem_assets.orchestration.resources import AuditStore
from fbmem_assets.orchestration.shards import Part
from fbmem_assets.orchestration.tables import markdown_table, picture, table_asset, table_result
from fbmem_core.audit.results import AuditedCheckpoint
from fbmem_core.errors import InputError
from fbmem_core.store.tables import digest

if TYPE_CHECKING:
    from fbmem_core.diffusion.conditioning import Conditioning
    from fbmem_core.diffusion.noise_difference import FirstStep
    from fbmem_core.neurons.localization import Localization
    from fbmem_core.neurons.statistics import ActivationStatistics, SimilarityThreshold

STAGE = "neurons"
_BATCH = 64  # prompts whose activations are held at once
_VERSION = 2  # raise it when the same settings begin to give other neurons
_MOST_PUBLIC = 0.05  # of the prompts that are known to be non-memorized, so many may get neurons


@table_asset(
    table="activation_statistics", stage=STAGE, deps=["labels"], kinds={"torch"}, needs=needs.calibration_prompts
)
def activation_statistics(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per value neuron: mean and standard deviation of its activation over non-memorized prompts."""
    from fbmem_core.neurons.layers import value_layers
    from fbmem_core.neurons.statistics import activation_statistics as measure

    audit = store.open(context.partition_key)
    pipeline = audit.pipeline
    prompts = audit.calibration_prompts()
    statistics = measure(
        pipeline,
        value_layers(pipeline, audit.config.neurons.layers),
        (_encode(audit, pipeline, prompts[first : first + _BATCH]) for first in range(0, len(prompts), _BATCH)),
    )
    rows = [
        {"layer": layer, "neuron": neuron, "mean": mean, "stddev": stddev, "num_prompts": statistics.num_prompts}
        for layer in statistics.layers
        for neuron, (mean, stddev) in enumerate(
            zip(statistics.mean[layer].tolist(), statistics.stddev[layer].tolist(), strict=True)
        )
    ]
    audit.write("activation_statistics", rows)
    return table_result(
        audit,
        "activation_statistics",
        audit.read("activation_statistics"),
        num_prompts=statistics.num_prompts,
        layers=markdown_table([{"layer": name, "neurons": len(mean)} for name, mean in statistics.mean.items()]),
    )


@table_asset(
    table="similarity_thresholds", stage=STAGE, deps=["labels"], kinds={"torch"}, needs=needs.calibration_prompts
)
def similarity_thresholds(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per checkpoint: calibrated on non-memorized prompts, or as the audit file says."""
    audit = store.open(context.partition_key)
    settings = audit.config.neurons
    pipeline = audit.pipeline
    prompts = audit.calibration_prompts()[: settings.num_threshold_prompts]
    conditions = _encode(audit, pipeline, prompts)
    each = (conditions.rows(row) for row in track(context, range(len(prompts)), what="calibrating"))
    calibrated = _calibrate(audit, pipeline, each)
    chosen = settings.threshold
    row = {
        "mode": settings.mode, "threshold": calibrated.value if chosen is None else chosen,
        "source": "calibrated" if chosen is None else "audit file",
        "mean": calibrated.mean, "stddev": calibrated.stddev,
        "pairs_threshold": calibrated.pairs_value, "num_prompts": calibrated.num_prompts,
    }  # fmt: skip
    audit.write("similarity_thresholds", [row])
    table = audit.read("similarity_thresholds")
    return table_result(audit, "similarity_thresholds", table, threshold=row["threshold"])


def _localize_part(context: dg.OpExecutionContext, store: AuditStore, part: Part) -> None:
    audit = store.open(context.partition_key)
    [threshold] = audit.read("similarity_thresholds")["threshold"]
    shards = part.of(_shards(audit))
    # localizations is written last, so what stands there is complete
    names = [shard for shard, _, _ in shards]
    done = audit.shards("localizations", names, report=context.log.warning)
    done &= audit.shards("neurons", names, report=context.log.warning)
    missing = [entry for entry in shards if entry[0] not in done]
    if not missing:
        return
    pipeline = audit.pipeline
    statistics, step = read_statistics(audit), _first_step(audit, pipeline)
    for shard, prompt_id, text in track(context, missing, what="localizing"):
        condition = _encode(audit, pipeline, [text])
        localization = _localize(audit, step, condition, statistics, threshold)
        audit.write("neurons", _rows(prompt_id, localization, condition, statistics, step), shard=shard)
        audit.write("localizations", [_summary(prompt_id, localization)], shard=shard)


@table_asset(
    table="neurons",
    stage=STAGE,
    deps=["prompts", "activation_statistics", "similarity_thresholds"],
    kinds={"torch"},
    work=_localize_part,
)
def neurons(context: dg.OpExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per (prompt_id, stage, layer, neuron): what NeMo finds. A prompt that has been searched is kept."""
    audit = store.open(context.partition_key)
    shards = [shard for shard, _, _ in _shards(audit)]
    for table in ("localizations", "neurons"):
        audit.keep_shards(table, shards)
    summaries, rows = audit.read("localizations"), audit.read("neurons")
    return table_result(
        audit,
        "neurons",
        rows,
        num_memorized=summaries.filter(pl.col("num_seeds") > 0).height,
        num_not_reached=summaries.filter(~pl.col("is_reached")).height,
        neurons_per_layer=picture(_layer_plot(audit, rows), "refined neurons per layer"),
        neurons_per_prompt=markdown_table(_per_kind(summaries, audit.read("prompts"))),
    )


@table_check(neurons, severity=dg.AssetCheckSeverity.WARN)
def non_memorized_prompts_have_no_neurons(audit: AuditedCheckpoint) -> Verdict:
    """Check that at most one in twenty of the prompts whose images are all labelled NM gets neurons."""
    non_memorized = set(audit.non_memorized_prompts)
    summaries = audit.read("localizations")
    with_neurons = summaries.filter(pl.col("prompt_id").is_in(non_memorized) & (pl.col("num_seeds") > 0))[
        "prompt_id"
    ].to_list()
    if not non_memorized:
        return Verdict(None, "no prompt has all its images labelled NM")
    sentence = f"{len(with_neurons)} of {len(non_memorized)} non-memorized prompts have neurons"
    facts = {"prompts": len(non_memorized), "with neurons": str(with_neurons[:20])}
    return Verdict(len(with_neurons) <= _MOST_PUBLIC * len(non_memorized), sentence, facts)


def read_statistics(audit: AuditedCheckpoint) -> "ActivationStatistics":
    """Statistics that `activation_statistics` wrote, layers in the order of the network."""
    import torch

    from fbmem_core.neurons.layers import value_layers
    from fbmem_core.neurons.statistics import ActivationStatistics

    layers = value_layers(audit.pipeline, audit.config.neurons.layers)
    table = audit.read("activation_statistics")
    rows_of = {layer: table.filter(pl.col("layer") == layer).sort("neuron") for layer in layers}
    columns = [
        {layer: torch.tensor(rows[name].to_list()) for layer, rows in rows_of.items()} for name in ("mean", "stddev")
    ]
    return ActivationStatistics(columns[0], columns[1], table["num_prompts"][0])


def layer_name(layer: str) -> str:
    """`down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v` is `down 1.0`, its further blocks `down 1.0.3`."""
    parts = layer.split(".")
    block, numbers = parts[0].split("_")[0], [part for part in parts if part.isdigit()]
    if numbers[-1] == "0":
        numbers = numbers[:-1]
    return f"{block} {'.'.join(numbers)}"


def _encode(audit: AuditedCheckpoint, pipeline: Any, prompts: list[str]) -> "Conditioning":
    from fbmem_core.diffusion.noise_difference import encode_prompts

    if not prompts:
        cure = "Name a file of prompts in `neurons.non_memorized_prompts`."
        raise InputError("non-memorized prompts", "none", cure=cure)
    return encode_prompts(pipeline, prompts, height=audit.config.sampling.height, width=audit.config.sampling.width)


def _first_step(audit: AuditedCheckpoint, pipeline: Any) -> "FirstStep":
    from fbmem_core.diffusion.noise_difference import FirstStep
    from fbmem_core.neurons.released import released_step

    settings, sampling = audit.config.neurons, audit.config.sampling
    size: dict[str, Any] = {"height": sampling.height, "width": sampling.width, "num_steps": settings.num_steps}
    if settings.mode == "released":
        return released_step(pipeline, num_seeds=settings.num_seeds, **size)
    return FirstStep(pipeline, range(sampling.seed, sampling.seed + settings.num_seeds), **size)


def _calibrate(audit: AuditedCheckpoint, pipeline: Any, conditions: "Iterator[Conditioning]") -> "SimilarityThreshold":
    """Calibrate by the mode of the audit."""
    from fbmem_core.neurons.released import calibrate_released_threshold
    from fbmem_core.neurons.statistics import calibrate_threshold

    step = _first_step(audit, pipeline)
    if audit.config.neurons.mode == "released":
        return calibrate_released_threshold(step, conditions, _encode(audit, pipeline, [""]))
    return calibrate_threshold(step, conditions)


def _localize(
    audit: AuditedCheckpoint,
    step: "FirstStep",
    condition: "Conditioning",
    statistics: "ActivationStatistics",
    threshold: float,
) -> "Localization":
    """Localize by the mode of the audit."""
    from fbmem_core.neurons.localization import localize
    from fbmem_core.neurons.released import localize_released

    settings = audit.config.neurons
    batch_size = settings.batch_size
    if settings.mode == "released":
        return localize_released(step, condition, statistics, threshold=threshold, batch_size=batch_size)
    return localize(
        step,
        condition,
        statistics,
        threshold=threshold,
        batch_size=batch_size,
        seed_margin=settings.seed_margin,
        search=settings.search,
    )


def _shards(audit: AuditedCheckpoint) -> list[tuple[str, str, str]]:
    """(shard, prompt_id, prompt): the shard's name changes with everything that the neurons depend on."""
    sampling = audit.config.sampling.model_dump(include={"seed", "height", "width", "dtype"})
    settings = audit.config.neurons.model_dump(
        include={"layers", "mode", "num_seeds", "num_steps", "seed_margin", "search"}
    )
    facts = [audit.data_version(name) for name in ("activation_statistics", "similarity_thresholds")]
    shards = []
    for prompt_id, text in audit.read("prompts").select("prompt_id", "prompt").iter_rows():
        shard = digest(_VERSION, audit.checkpoint.fingerprint, prompt_id, text, sampling, settings, facts)
        shards.append((shard, prompt_id, text))
    return shards


def _rows(
    prompt_id: str,
    localization: "Localization",
    condition: "Conditioning",
    statistics: "ActivationStatistics",
    step: "FirstStep",
) -> list[dict[str, Any]]:
    from fbmem_core.neurons.statistics import activations

    values = activations(step.denoiser.pipeline, statistics.layers, condition)
    scores = statistics.z_scores(values)
    # one copy from the device a layer, not one a neuron
    numbers = {layer: (scores[layer][0].tolist(), values[layer][0].tolist()) for layer in statistics.layers}
    return [
        {
            "prompt_id": prompt_id, "stage": stage, "layer": layer, "neuron": neuron,
            "z_score": numbers[layer][0][neuron], "activation": numbers[layer][1][neuron],
        }
        for stage, neurons in (("initial", localization.initial), ("refined", localization.refined))
        for layer, neuron in neurons
    ]  # fmt: skip


def _summary(prompt_id: str, localization: "Localization") -> dict[str, Any]:
    fields = {name: value for name, value in vars(localization).items() if name not in ("initial", "refined")}
    return {
        "prompt_id": prompt_id,
        **fields,
        "num_initial": len(localization.initial),
        "num_refined": len(localization.refined),
    }


def _per_kind(summaries: pl.DataFrame, prompts: pl.DataFrame) -> list[dict[str, Any]]:
    named = summaries.join(prompts.select("prompt_id", pl.col("kind").fill_null("")), on="prompt_id")
    return (
        named.group_by("kind")
        .agg(
            pl.len().alias("prompts"),
            (pl.col("num_seeds") > 0).sum().alias("with neurons"),
            pl.col("num_initial").mean().alias("initial, mean"),
            pl.col("num_refined").mean().alias("refined, mean"),
            pl.col("num_refined").max().alias("refined, most"),
        )
        .sort("kind")
        .to_dicts()
    )


def _layer_plot(audit: AuditedCheckpoint, rows: pl.DataFrame) -> str:
    from fbmem_core.report.plots import bar_plot

    refined = rows.filter(pl.col("stage") == "refined").unique(["layer", "neuron"])
    counts = dict(refined.group_by("layer").len().iter_rows())
    layers = read_statistics(audit).layers
    named = {layer_name(layer): counts.get(layer, 0) for layer in layers}
    return bar_plot(named, title="Refined neurons of all prompts", label="neurons")
