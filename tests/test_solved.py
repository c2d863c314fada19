"""Solved fields slab by slab: a block reads its own steps, whatever the slabs; records and tables of stations stay small."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from smscale.evaluate import score_table
from smscale.fusion.interpolators import Kriging
from smscale.fusion.solve import pose
from smscale.pipeline import solved
from smscale.pipeline.evaluate import station_table
from smscale.pipeline.fusion_scores import AtStations, station_scores
from smscale.pipeline.solved import SolvedFields, fields_at, files, folder, keep_posed, left_out, slabs, solve_slab
from smscale.pipeline.stations import packed, unpacked

LON, LAT = np.linspace(100, 104, 6), np.linspace(34, 30, 5)


def posed_ways(n=25, t=17, systematic="none", seed=0):
    """Two ways of fusing a made network; its first steps have too few stations for kriging, one has none."""
    rng = np.random.default_rng(seed)
    coords = np.column_stack([rng.uniform(100, 104, n), rng.uniform(30, 34, n)])
    seen = 0.25 + 0.04 * rng.normal(size=(n, 1)) + 0.03 * rng.normal(size=(n, t))
    seen[rng.random((n, t)) < 0.3] = np.nan
    seen[4:, :6], seen[:, 11] = np.nan, np.nan
    ground = np.full((n, t), 0.22)
    return {
        "gda_kriging": pose(coords, seen, ground, "difference", "kriging", systematic),
        "gra_idw": pose(coords, seen, ground, "ratio", "idw", systematic),
    }


def solve_all(root, ways, t):
    for name, posed in ways.items():
        keep_posed(root, name, posed)
        for slab in slabs(t):
            solve_slab(str(root), name, slab.start, "")
    solved._KEPT.clear()
    solved._shared.cache_clear()


@pytest.mark.parametrize("systematic", ["none", "spatial-bias"])
@pytest.mark.parametrize("steps", [5, 128])
def test_steps_of_a_block_are_the_same_whatever_the_slabs(steps, systematic, tmp_path, monkeypatch):
    monkeypatch.setattr(solved, "STEPS", steps)
    ways = posed_ways(systematic=systematic)
    solve_all(tmp_path, ways, 17)
    assert all(path.is_file() for path in files(tmp_path, list(ways), 17))
    together = {name: posed.solve() for name, posed in ways.items()}
    for part in (slice(0, 17), slice(3, 12), slice(15, 17)):
        for name, field in fields_at(str(tmp_path), list(ways), part, "").items():
            whole = together[name]
            assert (field.method == whole.method[part]).all()
            np.testing.assert_allclose(field.evaluate(LON, LAT), whole.evaluate(LON, LAT, part), atol=1e-7)
            np.testing.assert_allclose(field.variance(LON, LAT), whole.variance(LON, LAT, part), atol=1e-7)
            np.testing.assert_array_equal(field.residuals, whole.residuals[:, part])
    for name, whole in together.items():
        np.testing.assert_allclose(left_out(tmp_path, name, 17), whole.leave_one_out(), atol=1e-7)
    every = SolvedFields(tmp_path, list(ways), 17)
    assert list(every) == list(ways)
    np.testing.assert_array_equal(every["gra_idw"].residuals, ways["gra_idw"].residuals)
    with pytest.raises(KeyError):
        every["gda_idw"]


def test_a_block_reads_its_slab_and_solves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(solved, "STEPS", 5)
    ways = posed_ways()
    solve_all(tmp_path, ways, 17)
    read = []
    monkeypatch.setattr(
        solved, "read_arrays", lambda path, real=solved.read_arrays: read.append(path.name) or real(path)
    )
    monkeypatch.setattr(Kriging, "_matrix", lambda self: pytest.fail("solved again"))
    fields_at(str(tmp_path), ["gda_kriging"], slice(6, 9), "")
    fields_at(str(tmp_path), ["gda_kriging"], slice(6, 9), "")
    assert read == ["shared.npz", "posed-5.npz", "solved-5.npz"]


@pytest.mark.parametrize("most", [0, 1 << 20])
def test_a_worker_keeps_what_fits_of_the_slabs_that_tiles_share(most, tmp_path, monkeypatch):
    solve_all(tmp_path, posed_ways(), 17)
    monkeypatch.setattr(solved, "KEPT_BYTES", most)
    parts = [slice(start, start + 4) for start in (0, 4, 8, 12)]
    first = [fields_at(str(tmp_path), ["gda_kriging"], part, "")["gda_kriging"] for part in parts]
    again = [fields_at(str(tmp_path), ["gda_kriging"], part, "")["gda_kriging"] for part in reversed(parts)]
    kept = [one is other for one, other in zip(first, reversed(again), strict=True)]
    assert kept == ([True] * 4 if most else [False, False, True, True])
    for one, other in zip(first, reversed(again), strict=True):
        np.testing.assert_array_equal(one.variance(LON, LAT), other.variance(LON, LAT))
    assert any(one.nbytes > 5 * one.residuals.nbytes for one in first)  # solved for the variance


def test_files_of_a_slab_are_the_same_bytes_each_time(tmp_path):
    ways = posed_ways(systematic="spatial-bias")
    solve_all(tmp_path, ways, 17)
    before = {path: path.read_bytes() for path in sorted(folder(tmp_path).rglob("*.npz"))}
    solve_all(tmp_path, ways, 17)
    assert {path: path.read_bytes() for path in sorted(folder(tmp_path).rglob("*.npz"))} == before
    assert len(before) == 6


def test_memory_of_a_block_does_not_grow_with_the_period(tmp_path):
    peaks = []
    for t in (128, 1024):
        rng = np.random.default_rng(0)
        coords = np.column_stack([rng.uniform(100, 104, 120), rng.uniform(30, 34, 120)])
        seen = 0.25 + 0.03 * rng.normal(size=(120, t))
        root = tmp_path / str(t)
        keep_posed(root, "gra_idw", pose(coords, seen, np.full(seen.shape, 0.22), "ratio", "idw"))
        for slab in slabs(t):
            solve_slab(str(root), "gra_idw", slab.start, "")
        solved._KEPT.clear()
        tracemalloc.start()
        fields_at(str(root), ["gra_idw"], slice(64, 128), "")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


# -- records and tables -------------------------------------------------------------------------


def test_a_record_holds_a_value_in_less_than_six_bytes():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, 64)).astype(np.float32)
    values[rng.random(values.shape) < 0.4] = np.nan
    text = packed(values)
    assert len(text) < 6 * values.size
    np.testing.assert_array_equal(unpacked(text, 40), values)
    odd = values.copy()
    odd.view(np.uint32)[np.isnan(values)] |= 7  # another NaN
    assert packed(odd) == text
    assert unpacked(packed(np.empty((3, 0), np.float32)), 3).shape == (3, 0)


def test_table_of_stations_is_columns_of_single_precision():
    rng = np.random.default_rng(0)
    n, t = 50, 120
    seen = rng.uniform(0.1, 0.4, (n, t))
    seen[rng.random((n, t)) < 0.2] = np.nan
    maps = {name: rng.uniform(0.1, 0.4, (n, t)).astype(np.float32) for name in ("rf", "gda_idw")}
    maps["rf"][:, 5] = np.nan
    held = np.broadcast_to(np.arange(n)[:, None] < 10, (n, t))
    at = AtStations([f"S{i}" for i in range(n)], seen, held, np.ones(n, bool), seen + 0.1, maps, {}, "rf", "rf")
    dates = pd.date_range("2020-01-01", periods=60).repeat(2).values
    layout = type("Steps", (), {"steps": xr.Dataset({"local_date": ("time", dates)})})
    tracemalloc.start()
    table = station_table(at, layout)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(table) == np.isfinite(seen).sum()
    # four sources of 4 bytes, a date of 8, a flag of 1
    assert table.memory_usage(index=False).sum() == 25 * len(table)
    assert peak < 3 * 25 * len(table)
    means = table.groupby("local_date")["stations"].mean()
    assert means.iloc[3] == pytest.approx(np.nanmean(seen[:, 6:8]), rel=1e-6)

    long = pd.DataFrame({"stations": seen.ravel(), "smap": at.smap.ravel(), **{k: v.ravel() for k, v in maps.items()}})
    sources = ["smap", "rf", "gda_idw"]
    for rows, shared in ((held, False), (held, True), (np.ones((n, t), bool), False)):
        expected = score_table(long[rows.ravel()], "stations", sources, common=shared)
        pd.testing.assert_frame_equal(station_scores(at, rows, shared), expected)
