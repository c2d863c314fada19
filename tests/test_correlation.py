"""Correlation lengths of made fields whose lengths are known, and the blocks that follow from them."""

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist

from smscale.errors import InputError
from smscale.kernels.sphere import chord_points
from smscale.models.correlation import block_sizes, correlation_lengths
from smscale.models.row_blocks import CELL_KM, space_blocks, time_blocks

FIRST = pd.Timestamp("2017-01-01")


def made(
    days: float, cells: float, *, grid: bool = True, span: int = 365, noise: float = 0.3, seed: int = 0
) -> pd.DataFrame:
    """A stationary Gaussian field, exp(-lag / days) exp(-distance / cells), seen every second day at most of 400 places."""
    rng = np.random.default_rng(seed)
    if grid:
        row, col = (a.ravel() for a in np.meshgrid(np.arange(20), np.arange(20), indexing="ij"))
        where, place = np.column_stack([row, col]).astype(float), {"row": row + 200, "col": col + 700}
    else:
        lon, lat = rng.uniform(97, 107, 400), rng.uniform(26, 34, 400)
        where, place = chord_points(lon, lat) / CELL_KM, {"longitude": lon, "latitude": lat, "station": np.arange(400)}
    root = np.linalg.cholesky(np.exp(-cdist(where, where) / cells) + 1e-10 * np.eye(400))
    keep = np.exp(-2 / days)
    field, tables = root @ rng.normal(size=400), []
    for day in range(0, span, 2):
        tables.append(pd.DataFrame({**place, "local_date": FIRST + pd.Timedelta(days=day), "y": field}))
        field = keep * field + np.sqrt(1 - keep**2) * (root @ rng.normal(size=400))
    table = pd.concat(tables, ignore_index=True)
    table["y"] += noise * rng.normal(size=len(table))
    return table.sample(15_000, random_state=seed)


@pytest.mark.parametrize("grid", [True, False])
@pytest.mark.parametrize(("days", "cells"), [(4, 3), (12, 1.5), (25, 2)])
def test_lengths_of_a_made_field_are_found(days: float, cells: float, grid: bool) -> None:
    """Within a third: a year has few independent stretches of weeks, a region few patches."""
    found = np.mean([correlation_lengths(made(days, cells, grid=grid, seed=seed), "y") for seed in range(3)], axis=0)
    assert found == pytest.approx([days, cells], rel=0.34)


def test_lengths_know_neither_the_places_means_nor_the_season_nor_the_units() -> None:
    table = made(8, 2)
    plain = correlation_lengths(table, "y")
    angle = 2 * np.pi * table["local_date"].dt.dayofyear / 365.25
    moved = table.assign(y=5 + 0.1 * table["y"] + 0.7 * np.sin(angle))
    assert correlation_lengths(moved, "y").days == pytest.approx(plain.days, rel=0.15)
    assert correlation_lengths(moved, "y").cells == pytest.approx(plain.cells, rel=0.1)
    offsets = np.random.default_rng(0).normal(size=1000)
    place = (table["row"] - 200) * 20 + table["col"] - 700
    assert correlation_lengths(table.assign(y=table["y"] + offsets[place]), "y").days == pytest.approx(
        plain.days, rel=0.05
    )


def test_lengths_are_the_same_for_rows_in_any_order() -> None:
    table = made(8, 2)
    few = table.iloc[:6000]
    assert correlation_lengths(few.sample(frac=1, random_state=1), "y") == pytest.approx(correlation_lengths(few, "y"))
    assert correlation_lengths(table, "y") == correlation_lengths(table, "y")


def test_noise_alone_has_no_length_and_few_rows_none_that_is_measurable() -> None:
    table = made(8, 2)
    noise = table.assign(y=np.random.default_rng(1).normal(size=len(table)))
    assert correlation_lengths(noise, "y").days < 1
    assert correlation_lengths(noise, "y").cells < 1
    assert np.isnan(correlation_lengths(table.iloc[:8], "y")).all()
    assert np.isnan(correlation_lengths(table[["y"]], "y")).all()
    assert np.isnan(correlation_lengths(table[["y", "local_date"]], "y").cells)


def test_blocks_are_as_long_as_the_correlation_and_never_below_the_least() -> None:
    long = block_sizes(made(25, 5), "y", 4)
    assert long.days == int(np.ceil(long.measured.days)) > 10
    assert long.cells == int(np.ceil(long.measured.cells)) > 3
    assert "blocks of" in long.line
    assert "capped" not in long.line
    short = block_sizes(made(3, 1), "y", 4)
    assert (short.days, short.cells) == (10, 3)
    assert short.line.count("the least") == 2


@pytest.mark.parametrize("grid", [True, False])
def test_blocks_are_capped_at_what_gives_enough_and_it_is_said(grid: bool) -> None:
    table = made(40, 12, grid=grid, span=120)
    found = block_sizes(table, "y", 5)
    assert "days, capped" in found.line
    assert np.unique(time_blocks(table, found.days)).size >= 5
    assert np.unique(time_blocks(table, found.days + 1)).size < 5
    assert np.unique(space_blocks(table, found.cells)).size >= 5
    assert found.days < found.measured.days


def test_blocks_of_a_table_without_dates_or_places_are_the_least() -> None:
    table = made(40, 12)
    found = block_sizes(table[["y"]], "y", 5)
    assert (found.days, found.cells) == (10, 3)
    assert "correlation in days not measurable, blocks of 10 days, the least" in found.line


def test_missing_targets_are_told() -> None:
    table = made(8, 2).iloc[:100]
    with pytest.raises(InputError, match="lacks z"):
        correlation_lengths(table, "z")
    with pytest.raises(InputError, match="not finite in 1 of 100 rows"):
        block_sizes(table.assign(y=table["y"].where(np.arange(100) != 3)), "y", 3)
