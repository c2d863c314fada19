"""Figures of the measurements on a machine: chunk strategies against one another, runs against the number of workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from smscale.errors import InputError
from smscale.evaluate.canvas import page
from smscale.evaluate.palette import CURVES, MARKERS

#: Access pattern -> what it is called, its colour, its marker: those of the cube filled, those of maps hollow.
PATTERNS = {
    "map": ("cube: a day", "#0072b2", "o"),
    "season": ("cube: a season at a station", "#d55e00", "s"),
    "upscale": ("upscaling pass", "#009e73", "^"),
    "inference": ("inference pass", "#cc79a7", "v"),
    "append": ("append a day", "#e69f00", "D"),
    "maps": ("maps written", "#000000", "X"),
    "maps day": ("map of a day", "#0072b2", "o"),
    "maps season": ("season of a map at a station", "#d55e00", "s"),
}
#: Of maps.
HOLLOW = ("maps", "maps day", "maps season")
#: Columns that are shown as bars.
BARS = {"MB": "MB on disk", "files": "files", "MiB": "memory gained (MiB)"}
_BAR, _CHOSEN = "#b3b3b3", "#332288"


def chunk_figure(
    rows: Sequence[Mapping[str, Any]],
    slow_downs: Mapping[str, Mapping[str, float]],
    path: str | Path,
    chosen: str = "",
) -> Path:
    """How many times as long as the best each strategy takes for each access pattern; its bytes, files and memory beside it.

    Parameters
    ----------
    rows : of the table of strategies: "strategy" (marked " *" where it is the recipe's own) and the columns of `BARS`
    slow_downs : strategy -> pattern of `PATTERNS` -> ratio to the best; a pattern that it does not serve is not there
    chosen : the strategy that is recommended

    Raises
    ------
    InputError
        without rows.
    """
    if not rows:
        raise InputError("chunk_figure needs at least one strategy")
    names = [str(row["strategy"]) for row in rows]
    plain = [name.removesuffix(" *") for name in names]
    places = np.arange(len(rows))[::-1]
    with page(path, 11.0, 1.9 + 0.42 * len(rows), "Chunk strategies") as figure:
        axes = figure.subplots(1, 1 + len(BARS), sharey=True, gridspec_kw={"width_ratios": [3.2, 1, 1, 1]})
        for pattern, (label, colour, marker) in PATTERNS.items():
            ratios = [slow_downs.get(name, {}).get(pattern, np.nan) for name in plain]
            style = {"color": colour, "label": label, "markersize": 6.5, "alpha": 0.9}
            axes[0].plot(ratios, places, marker, fillstyle="none" if pattern in HOLLOW else "full", **style)
        axes[0].set_yticks(places, names)
        for label, name in zip(axes[0].get_yticklabels(), plain, strict=True):
            if name == chosen:
                label.set(fontweight="bold", color=_CHOSEN)
        axes[0].set_xscale("log")
        axes[0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes[0].xaxis.set_minor_formatter(NullFormatter())
        axes[0].set_xlabel("times as long as the best lossless strategy of the pattern (cold files)")
        axes[0].grid(axis="both")
        for ax, (column, label) in zip(axes[1:], BARS.items(), strict=True):
            _bars(ax, places, [float(row[column]) for row in rows], [name == chosen for name in plain])
            ax.set_xlabel(label)
        figure.legend(loc="outside lower center", ncols=4)
    return Path(path)


def _bars(ax: Axes, places: np.ndarray, values: Sequence[float], chosen: Sequence[bool]) -> None:
    ax.barh(places, values, height=0.6, color=[_CHOSEN if c else _BAR for c in chosen])
    for place, value in zip(places, values, strict=True):
        ax.annotate(
            f"{value:.3g}" if value < 1000 else f"{value:.0f}",
            (value, place),
            (3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    ax.set_xlim(0, max(values) * 1.35 or 1)
    ax.xaxis.set_major_locator(MaxNLocator(3))


def scaling_figure(rows: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Speed-up of a cube of one size, efficiency of one that grows with the workers, and what the scheduler has to do.

    Parameters
    ----------
    rows : of the table of runs: "kind" ("strong" | "weak"), "blocks of" (their shape in words), "workers", "speed-up", "efficiency",
        "scheduler %", "kB a block"

    Raises
    ------
    InputError
        without rows.
    """
    if not rows:
        raise InputError("scaling_figure needs at least one run")
    workers = sorted({int(row["workers"]) for row in rows})
    sizes = list(dict.fromkeys(str(row["blocks of"]) for row in rows))
    with page(path, 11.0, 3.9, "Scaling of the inference and fusion pass") as figure:
        strong, weak, load = figure.subplots(1, 3)
        strong.plot(workers, workers, color="#8c8c8c", linestyle=":", label="ideal")
        weak.axhline(1.0, color="#8c8c8c", linestyle=":")
        for colour, marker, size in zip(CURVES, MARKERS, sizes, strict=False):
            style = {"color": colour, "marker": marker, "label": f"blocks of {size}"}
            for ax, kind, column in ((strong, "strong", "speed-up"), (weak, "weak", "efficiency")):
                ax.plot(*_series(rows, kind, size, column), **style)
            shown = _series(rows, "strong", size, "scheduler %")
            load.plot(*shown, **style)
            for x, y, size_told in zip(*shown, _series(rows, "strong", size, "kB a block")[1], strict=True):
                load.annotate(
                    f"{size_told:.3g} kB a block", (x, y), (0, 7), textcoords="offset points", ha="center", fontsize=8
                )
        strong.set(title="Strong: one cube", ylabel="speed-up against one worker")
        weak.set(title="Weak: a cube that grows", ylabel="efficiency", ylim=(0, 1.15))
        load.set(title="Scheduler (and bytes sent)", ylabel="of a core (%)")
        load.set_ylim(0, 1.3 * max(float(row["scheduler %"]) for row in rows) or 1)
        for ax in (strong, weak, load):
            ax.set_xticks(workers)
            ax.set_xlim(workers[0] - 0.3, workers[-1] + 0.3)
            ax.set_xlabel("workers")
            ax.grid()
        figure.legend(*strong.get_legend_handles_labels(), loc="outside lower center", ncols=len(sizes) + 1)
    return Path(path)


def _series(rows: Sequence[Mapping[str, Any]], kind: str, size: str, column: str) -> tuple[list[int], list[float]]:
    """Workers and values of one line."""
    chosen = [row for row in rows if row["kind"] == kind and row["blocks of"] == size]
    return [int(row["workers"]) for row in chosen], [float(row[column]) for row in chosen]
