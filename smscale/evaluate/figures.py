"""The figures of a report: PNG files whose bytes depend on the data alone.

Every function draws on a figure of its own, with Matplotlib's defaults and the bundled font whatever the user's settings, and
returns the path that it wrote. A source (stations, smap, gabp, ...) has one colour and one name everywhere: see `palette`.
"""

from smscale.evaluate.map_figures import box_plot, daily_curves, maps, pdf_curves
from smscale.evaluate.palette import label_of
from smscale.evaluate.sample_figures import correlation_bars, importance_bars, sample_flow, training_curves
from smscale.evaluate.score_figures import period_bars, scatter, score_bars, split_bars

__all__ = [
    "box_plot",
    "correlation_bars",
    "daily_curves",
    "importance_bars",
    "label_of",
    "maps",
    "pdf_curves",
    "period_bars",
    "sample_flow",
    "scatter",
    "score_bars",
    "split_bars",
    "training_curves",
]
