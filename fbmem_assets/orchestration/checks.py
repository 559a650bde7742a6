"""Checks of assets: passed, failed or not applicable, each with a sentence, and kept as rows of the table `checks`."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from fbmem_assets.orchestration.partitions import checkpoint_partitions
from fbmem_assets.orchestration.provenance import LEFT_OUT, record_of
from fbmem_assets.orchestration.resources import AuditStore
from fbmem_core.audit.results import AuditedCheckpoint

PASSED, FAILED, NOT_APPLICABLE = "passed", "failed", "not_applicable"


@dataclass(frozen=True)
class Verdict:
    """Result of a check.

    Attributes:
        passed: None where there is nothing to check: the check is then shown as skipped, never as passed.
        sentence: What was found, for people.
        facts: Numbers and tables for Dagster's page.
        severity: Where it is another one than the check's own.
    """

    passed: bool | None
    sentence: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    severity: dg.AssetCheckSeverity | None = None


Check = Callable[[AuditedCheckpoint], Verdict]


def table_check(
    asset: dg.AssetsDefinition,
    *,
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
    blocking: bool = False,
    name: str | None = None,
) -> Callable[[Check], dg.AssetChecksDefinition]:
    """A check of one asset: a function of the audit, named as the function, which says what it found.

    It does not run on an asset that was left out, and fails on one that was never made.
    """
    asset_name = asset.key.to_user_string()

    def declare(check: Check) -> dg.AssetChecksDefinition:
        check_name = name or check.__name__
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", dg.PreviewWarning)  # of partitions_def
            spec = dg.AssetCheckSpec(
                check_name,
                asset=asset.key,
                description=" ".join((check.__doc__ or "").split()),
                blocking=blocking,
                partitions_def=checkpoint_partitions,
            )

        @dg.multi_asset_check(name=f"{asset_name}_{check_name}", specs=[spec], can_subset=True)
        def run(context, store: AuditStore) -> Iterator[dg.AssetCheckResult]:  # type: ignore[no-untyped-def]
            key = context.partition_key
            verdict = _judge(store, key, asset_name, check)
            level = verdict.severity or severity
            _keep(store, key, asset_name, check_name, verdict, level)
            if verdict.passed is None:
                context.log.info(f"{check_name} does not apply: {verdict.sentence}")
                return
            yield dg.AssetCheckResult(
                passed=verdict.passed,
                check_name=check_name,
                asset_key=asset.key,
                severity=level,
                description=verdict.sentence,
                metadata=dict(verdict.facts),
            )

        return run

    return declare


def _judge(store: AuditStore, key: str, asset: str, check: Check) -> Verdict:
    record = record_of(store, key, asset)
    if record is None:
        return Verdict(False, f"`{asset}` was never finished for {key}: materialize it first.")
    if record["status"] == LEFT_OUT:
        return Verdict(None, f"`{asset}` was left out: {record['reason']}")
    return check(store.open(key))


def _keep(
    store: AuditStore, key: str, asset: str, name: str, verdict: Verdict, severity: dg.AssetCheckSeverity
) -> None:
    status = NOT_APPLICABLE if verdict.passed is None else PASSED if verdict.passed else FAILED
    row = {
        "asset": asset, "check_name": name, "status": status, "severity": severity.value,
        "sentence": verdict.sentence, "checked_at": datetime.now(UTC),
    }  # fmt: skip
    store.tables.write("checks", key, [row], shard=f"{asset}-{name}")


def all_there(what: str, *, expected: int, present: int, **facts: Any) -> Verdict:
    """Check that there are as many rows as expected; with none expected there is nothing to check."""
    numbers = {"expected": expected, "found": present, **facts}
    if not expected and not present:
        return Verdict(None, f"there are no {what}", numbers)
    return Verdict(present == expected, f"{present} of {expected} {what} are there", numbers)
