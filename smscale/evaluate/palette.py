"""What a source of soil moisture is called and which colour it has, the same in every figure and table.

Colours are those of Okabe and Ito (2008) and Tol (2021), which colour-blind readers can tell apart; lines differ in dash as well.
"""

from __future__ import annotations

import zlib
from typing import Any

#: Source -> (label, colour, line style).
SOURCES: dict[str, tuple[str, str, str]] = {
    "stations": ("stations", "#000000", "-"),
    "truth": ("truth", "#5c5c5c", "-"),
    "smap": ("SMAP 36 km", "#d55e00", "-"),
    "coarse": ("coarse field", "#d55e00", "-"),
    "gabp": ("GABP", "#0072b2", "-"),
    "cnn": ("CNN", "#009e73", "-"),
    "rf": ("random forest", "#e69f00", "-"),
    "xgb": ("XGBoost", "#cc79a7", "-"),
    "ridge": ("ridge regression", "#5c5c5c", "--"),
    "mean": ("mean", "#b3b3b3", ":"),
    "fused": ("fused", "#332288", "-"),
    "gda_kriging": ("difference, kriging", "#332288", "-"),
    "gda_idw": ("difference, IDW", "#56b4e9", "--"),
    "gra_kriging": ("ratio, kriging", "#882255", "-."),
    "gra_idw": ("ratio, IDW", "#999933", ":"),
    "nearest": ("nearest", "#8c8c8c", "-"),
    "bilinear": ("bilinear", "#8c8c8c", "--"),
    "cubic": ("cubic", "#8c8c8c", ":"),
}
#: A model's map with its coarse means brought to the retrievals: one a run.
CLOSED = "_closed"
CLOSED_COLOUR = "#117733"
#: Colours of sources that have none of their own (Tol's muted scheme).
SPARE_COLOURS = ("#44aa99", "#aa7733", "#ddcc77", "#cc6677", "#aa4499", "#6699cc")
#: Curves that are of no source, in order: colour, and marker where points are few.
CURVES = ("#0072b2", "#d55e00", "#009e73", "#882255")
MARKERS = ("o", "s", "^", "v")
#: Line style of a source -> Matplotlib's.
DASHES: dict[str, Any] = {"-": "-", "--": (0, (5, 2)), "-.": (0, (6, 2, 1.5, 2)), ":": (0, (1.5, 1.5))}
ACRONYMS = ("lst", "ndvi", "evi", "et")


def label_of(source: str) -> str:
    """What a source (or a predictor) is called."""
    if source in SOURCES:
        return SOURCES[source][0]
    if source.endswith(CLOSED):
        return f"{label_of(source.removesuffix(CLOSED))}, closed"
    return source.upper() if source in ACRONYMS else source.replace("_", " ")


def colour_of(source: str) -> str:
    """The colour of a source, as #rrggbb."""
    if source.endswith(CLOSED):
        return CLOSED_COLOUR
    return SOURCES[source][1] if source in SOURCES else SPARE_COLOURS[zlib.crc32(source.encode()) % len(SPARE_COLOURS)]


def line_of(source: str) -> dict[str, Any]:
    """How a source's curve is drawn: colour, dash, width."""
    dash = SOURCES[source][2] if source in SOURCES else "-"
    width = 2.0 if source in ("stations", "truth") else 1.5
    return {"color": colour_of(source), "linestyle": DASHES[dash], "linewidth": width}
