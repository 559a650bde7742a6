"""Shares of memories that attacks bring back, over independent units, with exact intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fbmem_core.evaluation.intervals import share_interval


def attack_shares(rows: Iterable[Mapping[str, Any]], units: Mapping[str, str]) -> list[dict[str, Any]]:
    """Shares by method and attack: of how many things the memory came back in any attempt.

    Args:
        rows: `method, attack, prompt_id, num_returned`, one per attacked prompt.
        units: By prompt_id the thing that it words, see `intervals.independent_units`.

    Returns:
        Rows `method, attack, num_units, num_returned, share, low, high` with the ends of the exact 95 % interval.

    >>> row = {"method": "nemo", "attack": "adversarial", "num_returned": 1}
    >>> [share] = attack_shares([row | {"prompt_id": "a"}, row | {"prompt_id": "b"}], {"a": "owl", "b": "owl"})
    >>> share["num_units"], share["num_returned"], round(share["low"], 3)
    (1, 1, 0.025)
    """
    returned: dict[tuple[str, str], dict[str, bool]] = {}
    for row in rows:
        by_unit = returned.setdefault((row["method"], row["attack"]), {})
        unit = units.get(row["prompt_id"], row["prompt_id"])
        by_unit[unit] = by_unit.get(unit, False) or row["num_returned"] > 0
    shares = []
    for (method, attack), by_unit in sorted(returned.items()):
        count, total = sum(by_unit.values()), len(by_unit)
        ends = share_interval(count, total)
        shares.append(
            {"method": method, "attack": attack, "num_units": total, "num_returned": count}
            | {"share": count / total, "low": ends.low, "high": ends.high}
        )
    return shares
