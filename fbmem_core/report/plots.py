"""Small plots for the UI and the report, as WebP `data:` URIs."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from fbmem_core.report.pictures import data_uri

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = tuple[Sequence[float], Sequence[float | None]]

_DPI = 90
_MAX_BYTES = 40_000
_MAX_NAMES = 40  # of an axis; more cannot be read


def bar_plot(values: Mapping[str, float], *, title: str, label: str) -> str:
    """A bar per name; `label` says what is counted, with its unit."""
    figure, axes = _new(width=max(4.0, 0.35 * len(values) + 1.5), height=3.2)
    axes.bar(range(len(values)), list(values.values()), color="#1f6f8b")
    _name_columns(axes, list(values))
    axes.set(title=title, ylabel=label)
    return _finish(figure)


def stacked_bar_plot(parts: Mapping[str, Mapping[str, float]], *, title: str, label: str) -> str:
    """A bar per name, made of the parts on top of each other, the last of them pale; all name the same things."""
    names = list(next(iter(parts.values()), {}))
    figure, axes = _new(width=max(4.8, 0.5 * len(names) + 2.5), height=3.4)
    bottom = np.zeros(len(names))
    for number, (part, values) in enumerate(parts.items(), start=1):
        color = "#dddddd" if number == len(parts) else None
        axes.bar(range(len(names)), list(values.values()), bottom=bottom, label=part, color=color)
        bottom += list(values.values())
    _name_columns(axes, names)
    axes.set(title=title, ylabel=label)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return _finish(figure)


def heat_map(values: np.ndarray, *, rows: Sequence[str], columns: Sequence[str], title: str, label: str) -> str:
    """A colored cell for each of values [rows, columns]; NaN stays white."""
    size = {"width": max(4.0, 0.45 * len(columns) + 2.5), "height": max(2.4, 0.28 * len(rows) + 1.6)}
    figure, axes = _new(**size)
    shown = axes.imshow(np.ma.masked_invalid(values), aspect="auto", cmap="viridis")
    figure.colorbar(shown, label=label)
    _name_columns(axes, columns)
    if len(rows) <= _MAX_NAMES:
        axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.set(title=title)
    return _finish(figure)


def line_plot(series: Mapping[str, Points], *, title: str, x_label: str, label: str, style: str = "-") -> str:
    """Points (x, y) of each series in a color of its own, joined or marked by matplotlib's `style`; None is a gap."""
    figure, axes = _new(width=4.8, height=3.8)
    for name, (x, y) in series.items():
        axes.plot(x, [np.nan if value is None else value for value in y], style, label=name, alpha=0.8)
    axes.set(title=title, xlabel=x_label, ylabel=label)
    if series:
        axes.legend(fontsize=8)
    return _finish(figure)


def _new(*, width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    return figure, figure.subplots()


def _name_columns(axes: Axes, names: Sequence[str]) -> None:
    if len(names) <= _MAX_NAMES:
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)


def _finish(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    with Image.open(buffer) as image:
        return data_uri(image.convert("RGB"), _MAX_BYTES)
