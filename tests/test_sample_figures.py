"""The drawn sample flow and the correlation bars: what stands beside each bar, and what a bar's colour says."""

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from smscale.evaluate import figures, sample_figures
from smscale.features.match import REASONS

FLOW = {"all": 1000, "observed": 400, "lst": 398, "predictors": 0, "samples": 0}


def drawn_flow(steps, reasons):
    ax = Figure().subplots()
    sample_figures._draw_flow(ax, steps, reasons)
    return ax


def test_each_step_says_what_it_kept_what_went_and_why():
    words = [text.get_text().replace("\u2009", " ").split() for text in drawn_flow(FLOW, REASONS).texts]
    assert words[0] == ["1", "000"]
    assert words[1] == ["400", "−600", "(60%)", *REASONS["observed"].split()]
    assert words[2] == ["398", "−2", "(<1%)", *REASONS["lst"].split()]
    assert words[3] == ["0", "−398", "(100%)", *REASONS["predictors"].split()]
    assert words[4] == ["0"]


def test_blue_is_kept_and_grey_behind_it_what_there_was_before():
    bars = drawn_flow(FLOW, {}).patches
    assert [bar.get_width() for bar in bars] == [1000, 1000, 400, 398, 0, 1000, 400, 398, 0, 0]


def test_a_share_that_is_nearly_all_is_not_called_all():
    assert "(>99%)" in sample_figures._flow_words(1, 1000, "")
    assert "(<1%)" in sample_figures._flow_words(999, 1000, "")
    assert sample_figures._flow_words(0, 0, "cloud") == "0"


@pytest.mark.parametrize("steps", [{}, {"all": 0}, FLOW, {"coarse cells": FLOW, "fine pixels": {"all": 10**9}}])
def test_one_flow_or_several_by_name_are_drawn(steps, tmp_path):
    path = figures.sample_flow(steps, tmp_path / "flow.png", reasons=REASONS, title="flow")
    assert path.stat().st_size > 1000


def test_bars_are_black_pale_or_full_by_what_is_significant():
    part = pd.DataFrame(
        {"cc": [0.5, -0.5, 0.1, np.nan], "p": [0.01, 0.01, 0.5, np.nan], "p_effective": [0.02, 0.3, 0.9, np.nan]}
    )
    ax = Figure().subplots()
    sample_figures._draw_correlations(ax, part, 0.05)
    colours = [matplotlib.colors.to_hex(bar.get_facecolor()) for bar in ax.patches]
    assert colours == [sample_figures._POSITIVE, sample_figures._NEGATIVE, "#000000", "#000000"]
    assert [bar.get_alpha() for bar in ax.patches] == [1.0, sample_figures._PALE, 1.0, 1.0]


def test_without_an_effective_p_no_bar_is_pale():
    ax = Figure().subplots()
    sample_figures._draw_correlations(ax, pd.DataFrame({"cc": [0.5, -0.5], "p": [0.01, 0.01]}), 0.05)
    assert {bar.get_alpha() for bar in ax.patches} == {None}
