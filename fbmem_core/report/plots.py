"""Small plots for the UI and the report, as WebP `data:` URIs."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from fbmem_core.report.colors import LOOKS
from fbmem_core.report.pictures import data_uri

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = tuple[Sequence[float], Sequence[float | None]]

_DPI = 90
_MAX_BYTES = 40_000
_MARKERS = ("o", "s", "^", "v", "D", "P", "X", "*")
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
        axes.bar(
            range(len(names)), list(values.values()), bottom=bottom, label=part, **_face(part, number == len(parts))
        )
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


def line_plot(
    series: Mapping[str, Points],
    *,
    title: str,
    x_label: str,
    label: str,
    style: str = "-",
    intervals: Mapping[str, tuple[float | None, float | None]] | None = None,
    counts: bool = False,
) -> str:
    """Points (x, y) of each series in a color of its own, joined or marked by matplotlib's `style`; None is a gap.

    A series that is named as a label has that label's own color and marker. `intervals` are ends (low, high) of y, for
    series of one point; with `counts` both axes show whole numbers alone.
    """
    figure, axes = _new(width=4.8, height=3.8)
    for number, (name, (x, y)) in enumerate(series.items()):
        values = [np.nan if value is None else value for value in y]
        look_of_label = LOOKS.get(name)
        marker = look_of_label.marker if look_of_label is not None else _MARKERS[number % len(_MARKERS)]
        color = look_of_label.color if look_of_label is not None and look_of_label.color != "#FFFFFF" else f"C{number}"
        look: dict[str, Any] = {"marker": marker, "color": color} if "o" in style else {"color": color}
        axes.plot(x, values, style.replace("o", "") or "none", label=name, alpha=0.8, **look)
        low, high = (intervals or {}).get(name, (None, None))
        if low is not None and high is not None and len(values) == 1:
            axes.vlines(x[0], low, high, color=color, linewidth=1.2)
    if counts:
        from matplotlib.ticker import MaxNLocator

        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(title=title, xlabel=x_label, ylabel=label)
    if series:
        axes.legend(fontsize=8)
    return _finish(figure)


def _face(part: str, is_last: bool) -> dict[str, Any]:
    """The color of a label, and the hatching of what is undecided; of other parts the last is pale."""
    look = LOOKS.get(part)
    if look is None:
        return {"color": "#dddddd" if is_last else None}
    return {"color": look.color, "edgecolor": "#1a1a1a", "hatch": look.hatch or None}


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
