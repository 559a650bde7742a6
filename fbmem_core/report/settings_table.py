"""Settings of audits as rows: each beside its default, or beside that of another audit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Row = dict[str, Any]


def settings_rows(settings: Mapping[str, Any]) -> list[Row]:
    """Settings with their defaults; those of an audit that have none always differ.

    Args:
        settings: A whole audit, as JSON says it.

    Returns:
        Rows `name` (dotted), `value`, `default` and `is_default`, by name.
    """
    from fbmem_core.audit.config import Audit

    defaults: Row = {}
    for name, information in Audit.model_fields.items():
        default = information.get_default(call_default_factory=True)
        defaults[name] = default.model_dump(mode="json") if hasattr(default, "model_dump") else default
    default_of = flat(defaults)
    return [
        {"name": name, "value": value, "default": default_of.get(name), "is_default": value == default_of.get(name)}
        for name, value in sorted(flat(settings).items())
    ]


def differing_settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Row]:
    """Settings that two audits do not share: rows `name`, `before` and `after`, by name; None where there is none.

    >>> differing_settings({"similarity": {"tau": 0.8}}, {"similarity": {"tau": 0.7}})
    [{'name': 'similarity.tau', 'before': 0.8, 'after': 0.7}]
    """
    first, second = flat(before), flat(after)
    return [
        {"name": name, "before": first.get(name), "after": second.get(name)}
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name)
    ]


def flat(values: Mapping[str, Any], prefix: str = "") -> Row:
    """Nested settings by dotted names.

    >>> flat({"sampling": {"steps": 25}, "name": "canary"})
    {'sampling.steps': 25, 'name': 'canary'}
    """
    leaves: Row = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            leaves |= flat(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = value
    return leaves
