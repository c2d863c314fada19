"""`smscale plan`: what a run will need, held against what runs need."""

import dataclasses
import json
from pathlib import Path

import pytest

from smscale import config, planning
from smscale.errors import RecipeError
from smscale.pipeline import with_region
from smscale.planning import Case, Size, estimate
from smscale.planning.empty import empty_run
from smscale.planning.rates import Rates, _line, _part
from smscale.schema import STEP_COORDINATES

STATIONS = 12
COORDINATES = ("time", "lat", "lon", "year", "igbp_class", "variable", "spatial_ref", *STEP_COORDINATES)
SMALL = ("coarse", "stations")
COORDINATES += ("first_day", "last_day", "station_count")


@pytest.fixture(scope="module")
def recipe():
    return config.read(Path(__file__).parent / "recipes" / "tiny.yaml")


@pytest.fixture(scope="module")
def size(recipe):
    return Size(with_region(recipe), STATIONS)


def rates(**seconds):
    return Rates(seconds, {}, {"evaluate": 10.0}, 5.0, {"cube.zarr": 0.25, "maps.zarr": 0.2}, 1, 1, 0.5, 1, "a machine")


def records(root, stage):
    return [json.loads(p.read_text())["key"] for p in (root / "ledger" / stage).glob("*.json")]


def test_every_task_of_a_run_was_planned(tiny_run, size):
    planned = {}
    for work in size.work():
        planned[work.name] = planned.get(work.name, 0) + work.tasks
    for stage in ("ingest", "match", "train", "downscale", "fuse", "evaluate"):
        found = {}
        for key in records(tiny_run, stage):
            part = _part(stage, key)  # one block makes the maps of two stages
            found |= {part: found.get(part, 0) + 1} if part.startswith(stage) else {}
        assert found == {name: n for name, n in planned.items() if name.startswith(stage) and n}


def test_blocks_are_those_of_the_run(tiny_run, size):
    blocks = [key for key in records(tiny_run, "downscale") if "/" not in key]
    assert len(blocks) == len(size.plan.blocks)


def test_no_more_files_are_written_than_planned(tiny_run, size):
    for name in ("cube.zarr", "maps.zarr"):
        root = tiny_run / name
        inside = [p.relative_to(root).parts for p in root.rglob("*") if p.is_file()]
        fields = [p for p in inside if "c" in p and p[0] not in SMALL and p[1] not in SMALL]
        shards = [p for p in fields if p[p.index("c") - 1] not in COORDINATES]
        planned = sum(a.files for a in size.arrays() if a.store == name)
        assert 0.5 * planned < len(shards) <= planned, name


def test_raw_bytes_are_those_of_the_arrays(tiny_run, size):
    import zarr

    root = zarr.open_group(str(tiny_run / "maps.zarr"), mode="r")
    raw = sum(a.nbytes for _, a in root.arrays() if a.ndim == 3)
    assert raw == sum(a.raw for a in size.arrays() if a.store == "maps.zarr")


def test_time_grows_with_the_region_and_falls_with_workers(size):
    given = rates(**{"downscale blocks": 1e-3})
    case = Case((100.0, 30.0, 104.0, 34.0), ("2017-07-01", "2017-07-31"), 1.0, 20)
    small, large = estimate("a", size, given, 1), estimate("b", case.of(size.recipe), given, 1)
    ratio = large.cells * large.overpasses / (small.cells * small.overpasses)
    assert large.seconds["downscale"] == pytest.approx(ratio * small.seconds["downscale"])
    two = estimate("b", case.of(size.recipe), given, 2)
    assert two.seconds["downscale"] == pytest.approx(large.seconds["downscale"] / 1.9)
    assert two.seconds["evaluate"] == large.seconds["evaluate"] == 10.0  # figures are drawn by one


def test_a_fit_takes_so_long_and_so_long_for_each_row(size):
    each, slope = _line((500, 2.0), (2000, 5.0))
    assert (each, slope) == pytest.approx((1.0, 0.002))
    assert _line((500, 2.0), (2000, 1.0)) == (2.0, 0.0)  # noise


def test_one_task_is_not_shared_among_workers(size):
    given = rates(**{"train fit/gabp": 1.0})
    one, many = estimate("a", size, given, 1), estimate("a", size, given, 64)
    assert many.seconds["train"] == one.seconds["train"] > 0


def test_the_globe_for_ten_years_can_be_planned(size):
    runs = {name: estimate(name, case.of(size.recipe), rates(), 2) for name, case in planning.WHAT_IF.items()}
    globe, china = runs["global land, ten years"], runs["China, a year"]
    assert globe.cells == 36_000 * 14_400
    assert globe.overpasses == 2 * 3652
    assert china.files_in > 5_000  # tiles x days
    assert globe.memory_per_worker <= globe.memory_limit
    text = planning.Forecast(tuple(runs.values()), rates()).text
    assert "518,400,000" in text
    assert all(len(line) < 400 for line in text.splitlines())


def test_a_plan_comes_as_json(size):
    found = planning.Forecast((estimate("a", size, rates(), 1),), rates())
    assert json.loads(found.json)["runs"][0]["blocks"] == len(size.plan.blocks)


def test_an_empty_run_tells_time_and_memory():
    found = empty_run(500, progress=False)
    assert found.blocks == 500
    assert found.seconds > 0
    assert found.megabytes >= found.before > 10


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"workers": 0}, "--workers 0"),
        ({"stations": -1}, "--stations -1"),
    ],
)
def test_odd_requests_are_refused(recipe, change, told):
    with pytest.raises(RecipeError, match=told):
        planning.plan(recipe, **change)


def test_a_block_that_does_not_fit_is_refused_before_anything_is_measured(recipe, monkeypatch):
    monkeypatch.setattr(planning, "rates_of", lambda *_: pytest.fail("measured"))
    small = dataclasses.replace(recipe.resources, memory_per_worker="200MiB")
    with pytest.raises(RecipeError, match="memory_per_worker"):
        planning.plan(dataclasses.replace(recipe, resources=small))
