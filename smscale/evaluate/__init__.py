"""How good the maps are: scores, figures and the report.

`figures` imports matplotlib and is therefore not imported here.
"""

from smscale.evaluate.report import Figure, Section, Table, format_table, write_report
from smscale.evaluate.scores import (
    correlations,
    extended_scores,
    finalise_scores,
    merge_sums,
    score_sums,
    score_table,
    scores,
)

__all__ = [
    "Figure",
    "Section",
    "Table",
    "correlations",
    "extended_scores",
    "finalise_scores",
    "format_table",
    "merge_sums",
    "score_sums",
    "score_table",
    "scores",
    "write_report",
]
