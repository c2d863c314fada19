"""`smscale plan`: what a run will need, held against what runs need."""

import dataclasses
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from smscale import cli, config, planning
from smscale.bench.empty import Held, empty_run
from smscale.errors import RecipeError
from smscale.observe import Observer
from smscale.pipeline import with_region
from smscale.pipeline.train import Training
from smscale.planning import Case, estimate, forecast
from smscale.planning import rates as measuring
from smscale.planning.rates import CLOUDS, STAGES, Rates, _line, _part
from smscale.planning.size import Size
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


def done(root):
    """How many tasks of each part a run did. What one block makes of two stages is told by the ledger of the first."""
    found = {}
    for stage in STAGES:
        for record in map(json.loads, (p.read_text() for p in (root / "ledger" / stage).glob("*.json"))):
            part = _part(stage, record["key"])
            if part != "fuse blocks" or record["seconds"]:
                found[part] = found.get(part, 0) + 1
    return found


def test_every_task_of_a_run_was_planned(tiny_run, size):
    assert done(tiny_run) == {work.name: work.tasks for work in size.work()}


def test_every_task_of_a_fusion_with_a_closure_was_planned(tiny_run, size, copy_run, tmp_path):
    closed = config.read(size.recipe.path, ["closure=exact"])
    root = copy_run(tiny_run, tmp_path / "closed")
    measuring.pipeline.run(closed, measuring.Workspace(root), cluster=None, only="fuse", progress=False)
    planned = {work.name: work.tasks for work in Size(with_region(closed), STATIONS).work()}
    assert done(root) == {name: n for name, n in planned.items() if not name.startswith("evaluate")}
    assert {"fuse sums", "fuse closure", "fuse agreement", "fuse blocks"} <= set(planned)
    assert not {"fuse sums", "fuse blocks"} & {work.name for work in size.work()}


def test_every_fold_of_a_split_was_planned_for_models_and_for_what_they_are_compared_with(recipe):
    split = dataclasses.replace(
        recipe.split, compare=("random", "time-block", "space-block"), folds=3, block_days=10, block_cells=3
    )
    day, row, col = (part.ravel() for part in np.indices((60, 12, 12)))
    table = pd.DataFrame({"row": row, "col": col, "local_date": np.datetime64("2017-06-01") + day.astype("m8[D]")})
    how = Training("", recipe.models, (), "", split, 0, {}, {})
    compared = how.compared(table)
    size = Size(with_region(dataclasses.replace(recipe, split=split)), STATIONS, samples=len(table))
    planned = {work.part: work for work in size.work() if work.part.startswith("split/")}
    assert {part: work.tasks for part, work in planned.items()} == dict(Counter(f"split/{t.model}" for t in compared))
    assert {"mean", "ridge", *recipe.models} == {task.model for task in compared}
    trained = sum(task.train.size for task in compared if task.model == "ridge")
    assert (
        0.85 * planned["split/ridge"].units < trained <= planned["split/ridge"].units
    )  # gaps between blocks train nobody


def test_time_that_no_planned_task_took_is_beside_them(size):
    walls = {"downscale": 20.0, "fuse": 3.0}
    seconds = {"downscale blocks": 8.0, "fuse pose": 1.0, "fuse solve": 2.0, "fuse something new": 4.0}
    timed = measuring._Timed(size, seconds, walls, {})
    assert timed.beside == {"downscale": 9.0, "fuse": 3.0}  # the systems are solved before the blocks, in their stage
    closed = Size(dataclasses.replace(size.recipe, closure="exact"), STATIONS)
    assert measuring._Timed(closed, seconds, walls, {}).beside == {"downscale": 12.0, "fuse": 0.0}


@pytest.mark.parametrize(
    ("key", "part"),
    [
        ("split/3-random-0-rf", "train split/rf"),
        ("split/12-space-block-4-cnn-3x3", "train split/cnn-3x3"),
        ("split/0-time-block-1-mean", "train split/mean"),
        ("inner/rf", "train inner/rf"),
    ],
)
def test_a_fold_of_a_split_belongs_to_its_model(key, part):
    assert _part("train", key) == part


def test_folds_train_on_what_they_leave(recipe):
    def units(compare, folds=5, fraction=0.3):
        split = dataclasses.replace(recipe.split, compare=compare, folds=folds, fraction=fraction)
        size = Size(with_region(dataclasses.replace(recipe, split=split)), STATIONS, samples=1000)
        return {work.part: (work.tasks, work.units) for work in size.work() if work.part.startswith("split/")}

    assert units(()) == {}
    assert units(("random",))["split/mean"] == (1, pytest.approx(700))
    assert units(("time-block",))["split/rf"] == (5, pytest.approx(5 * 800))
    assert units(("random", "time-block", "space-block"))["split/gabp"] == (11, pytest.approx(700 + 8000))


RECIPES = sorted(Path(__file__).parents[1].joinpath("pipelines").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("stations", [0, 60])
def test_no_recipe_has_less_than_no_work(path, stations):
    recipe = config.read(path)
    if recipe.table is not None or recipe.recovery is not None:
        pytest.skip("it makes no maps")
    for closure in ("none", "exact"):
        works = Size(with_region(dataclasses.replace(recipe, closure=closure)), stations).work()
        assert min(work.tasks for work in works) > 0
        assert min(work.units for work in works) >= 0
        assert {work.name for work in works if not work.units} <= ({"ingest stations"} if not stations else set())


def test_the_share_of_samples_is_the_papers(size):
    sichuan = forecast.WHAT_IF["Sichuan, a season"].of(size.recipe)
    assert sichuan.layout.coarse.shape == (26, 31)
    assert sichuan.rows == 8670
    assert dataclasses.replace(sichuan, samples=500).rows == 500


def test_blocks_are_those_of_the_run(tiny_run, size):
    assert done(tiny_run)["downscale blocks"] == len(size.plan.blocks)


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
    assert 1.8 <= 1 + forecast.SHARING <= 2
    assert two.seconds["downscale"] == pytest.approx(large.seconds["downscale"] / (1 + forecast.SHARING))
    assert two.seconds["evaluate"] == large.seconds["evaluate"] == 10.0  # figures are drawn by one
    assert two.wall == pytest.approx(sum(two.seconds.values()))
    assert set(two.seconds) == {"start", *STAGES}


def test_a_fit_takes_so_long_and_so_long_for_each_row(size):
    each, slope = _line((500, 2.0), (2000, 5.0))
    assert (each, slope) == pytest.approx((1.0, 0.002))
    assert _line((500, 2.0), (2000, 1.0)) == (2.0, 0.0)  # noise


def test_one_task_is_not_shared_among_workers(size):
    given = rates(**{"train fit/gabp": 1.0})
    one, many = estimate("a", size, given, 1), estimate("a", size, given, 64)
    assert many.seconds["train"] == one.seconds["train"] > 0


def test_tasks_that_go_out_together_wait_for_the_longest_of_them(size):
    fits = {
        f"train fit/{model}": seconds for model, seconds in (("gabp", 6.0), ("cnn", 2.0), ("rf", 1.0), ("xgb", 1.0))
    }
    whole = {name: seconds * (1 - size.recipe.split.fraction) * size.rows for name, seconds in fits.items()}
    one, two, many = (estimate("a", size, rates(**fits), n).seconds["train"] for n in (1, 2, 64))
    assert one == pytest.approx(sum(whole.values()))
    assert two == many == pytest.approx(whole["train fit/gabp"])
    both = rates(**{"train fit/gabp": 1.0, "train inner/gabp": 1.0})  # folds wait for the fits
    inner = (1 - size.recipe.split.fraction) * size.rows * (size.recipe.split.inner_folds - 1)
    assert estimate("a", size, both, 64).seconds["train"] == pytest.approx(whole["train fit/gabp"] / 6 + inner)


def test_the_globe_for_ten_years_can_be_planned(size):
    runs = {name: estimate(name, case.of(size.recipe), rates(), 2) for name, case in forecast.WHAT_IF.items()}
    globe, china = runs["global land, ten years"], runs["China, a year"]
    assert globe.cells == 36_000 * 14_400
    assert globe.overpasses == 2 * 3652
    assert china.files_in > 5_000  # tiles x days
    assert globe.memory_per_worker <= globe.memory_limit
    text = planning.Forecast(tuple(runs.values()), rates()).text
    assert "518,400,000" in text
    assert all(len(line) < 400 for line in text.splitlines())
    for name in forecast.WHAT_IF:
        assert f"- {name}: " in text


def test_more_samples_than_a_worker_holds_or_rates_carry_are_told(size):
    given = rates(**{"train fit/gabp": 1e-3})
    many = estimate("many", dataclasses.replace(size, samples=30_000_000), given, 2)
    some = estimate("some", dataclasses.replace(size, samples=100_000), given, 2)
    few = estimate("few", size, given, 2)
    assert many.seconds["train"] is None
    assert many.training_memory > 30_000_000 * 12 * 4
    assert many.training_memory > many.memory_limit
    assert few.training_memory < few.memory_limit
    assert some.seconds["train"] > few.seconds["train"] > 0
    assert many.wall == pytest.approx(few.wall - few.seconds["train"])
    lines = {line[:28].strip(): line for line in planning.Forecast((many, few), given).text.splitlines()}
    assert lines["time: train"].count("not reckoned") == 1
    assert lines["time"].count("without training") == 1
    assert lines["memory of a worker: training"].count("too little") == 1


def test_a_case_that_fits_no_worker_has_its_reason_and_the_others_their_numbers(recipe, monkeypatch):
    monkeypatch.setattr(forecast, "rates_of", lambda *given: rates())
    monkeypatch.setattr(forecast, "MEMORIES", (2,))
    many = Case((100.0, 30.0, 104.0, 34.0), ("2017-07-01", "2017-07-31"), 1.0, 100_000)
    small = Case((100.0, 30.0, 104.0, 34.0), ("2017-07-01", "2017-07-31"), 1.0, 20)
    monkeypatch.setattr(forecast, "WHAT_IF", {"many": many, "small": small})
    found = planning.plan(recipe, progress=False)
    assert [run.name for run in found.runs] == ["tiny", "small"]
    assert "memory_per_worker" in found.refused["many"]
    assert json.loads(found.json)["refused"] == dict(found.refused)
    header, first, *_ = found.text.splitlines()
    assert header.split() == ["tiny", "small", "many"]
    assert first.split()[-1] == "refused"
    assert f"- many: {found.refused['many']}" in found.text.splitlines()
    assert not [line for line in found.text.splitlines() if line.startswith("- many: 100%")]


def test_without_what_if_no_note_is_about_it(recipe, monkeypatch):
    monkeypatch.setattr(forecast, "rates_of", lambda *given: rates())
    text = planning.plan(recipe, what_if=False, progress=False).text
    assert "tiny" in text
    assert not [name for name in forecast.WHAT_IF if name in text]


def test_workers_are_as_many_as_the_machine_has_memory_for(size, monkeypatch):
    monkeypatch.setattr(forecast, "default_workers", lambda memory: {"1.5GiB": 8, "6GiB": 2}[memory])

    def with_resources(workers, memory):
        resources = dataclasses.replace(size.recipe.resources, workers=workers, memory_per_worker=memory)
        return dataclasses.replace(size, recipe=dataclasses.replace(size.recipe, resources=resources))

    own, larger = with_resources(5, "1.5GiB"), with_resources(5, "6GiB")
    free, free_larger = with_resources(None, "1.5GiB"), with_resources(None, "6GiB")
    assert [forecast._workers(s, own, None) for s in (own, larger)] == [5, 2]
    assert [forecast._workers(s, free, None) for s in (free, free_larger)] == [8, 2]
    assert forecast._workers(larger, own, 7) == 7


def test_a_plan_comes_as_json(size):
    found = planning.Forecast((estimate("a", size, rates(), 1),), rates())
    assert json.loads(found.json)["runs"][0]["blocks"] == len(size.plan.blocks)


def test_an_empty_run_tells_time_and_memory():
    found = empty_run(500, progress=False)
    assert found.blocks == found.planned == 500
    assert found.seconds > 0
    assert 1 <= found.held < 50  # a window moves over them
    assert "500 empty blocks with" in found.line
    assert "500 empty blocks (of 900 planned)" in dataclasses.replace(found, planned=900).line


def test_what_a_process_holds_is_looked_at_while_it_runs():
    class Scheduler:
        tasks = ()

    class Client:
        cluster = type("Cluster", (), {"scheduler": Scheduler})

    with Held(Client) as held:
        much = b"x" * 60_000_000
        Scheduler.tasks = range(7)
        time.sleep(0.2)
        del much
        Scheduler.tasks = ()
    assert held.most - held.before > 50_000_000
    assert held.tasks == 7


# -- the rates ----------------------------------------------------------------------------------------


def timed(recipe, seconds, walls, side=0.4):
    region = (100.0, 30.0, 100.0 + side, 30.4)
    small = dataclasses.replace(recipe, world=None, region=region, period=("2017-07-01", "2017-07-02"))
    return measuring._Timed(Size(small, 3, samples=20), seconds, walls, {"cube.zarr": 1000, "maps.zarr": 2000})


def test_rates_are_times_by_units_and_what_is_left_is_beside_or_the_start(recipe):
    walls = dict.fromkeys(STAGES, 10.0)
    large = timed(recipe, {"downscale blocks": 4.0, "match steps": 6.0}, walls)
    small = timed(recipe, {"downscale blocks": 2.0, "match steps": 6.0}, walls, side=0.2)
    cold = timed(recipe, {"downscale blocks": 50.0}, {**walls, "downscale": 25.0}, side=0.2)
    assert large.size.cell_steps == 2 * small.size.cell_steps
    fits = {
        f"{how}/{m}/{n}": n / 1000
        for how in ("fit", "inner")
        for m in (*recipe.models, "mean", "ridge")
        for n in (500, 2000)
    }
    found = measuring._divided(cold, small, large, fits, 3.0, 0.7)
    assert found.seconds["downscale blocks"] == pytest.approx(
        4.0 / large.size.cell_steps
    )  # twice the cells, twice as long
    assert found.each["downscale blocks"] == pytest.approx(0.0)
    assert found.seconds["match steps"] == pytest.approx(0.0)  # as long whatever the cells
    assert found.each["match steps"] == pytest.approx(6.0 / len(large.size.layout.slabs()))
    assert found.seconds["train fit/rf"] == pytest.approx(1e-3)
    assert found.seconds["train inner/rf"] == pytest.approx(1e-3)  # of two folds each row is in one
    assert found.seconds["train split/mean"] == pytest.approx(1e-3)
    assert found.beside == {**walls, "downscale": 6.0, "match": 4.0}
    assert found.start == pytest.approx(3.0 + 15.0)  # the worker stands; the first world took longer by so much
    assert found.ratio["maps.zarr"] == pytest.approx(
        2000 / sum(a.raw for a in large.size.arrays() if a.store == "maps.zarr")
    )
    assert found.clouds == 0.7


def test_every_part_of_every_plan_has_a_rate(recipe):
    walls = dict.fromkeys(STAGES, 10.0)
    fits = {
        f"{how}/{m}/{n}": 1.0
        for how in ("fit", "inner")
        for m in (*recipe.models, "mean", "ridge")
        for n in (500, 2000)
    }
    closed = dataclasses.replace(recipe, closure="exact")
    found = measuring._divided(*[timed(closed, {}, walls)] * 3, fits, 0.0, 0.7)
    split = dataclasses.replace(closed.split, compare=("random", "space-block"))
    planned = Size(with_region(dataclasses.replace(closed, split=split)), STATIONS).work()
    assert {work.name for work in planned} - {"evaluate truth"} <= set(found.seconds)


def test_every_fit_that_is_planned_is_timed(recipe):
    keys = [task.key for task in measuring._fits(recipe)]
    assert len(keys) == len(set(keys)) == 2 * (2 * len(recipe.models) + 2)
    assert {"fit/ridge/500", "inner/cnn/2000"} <= set(keys)
    assert measuring._fit(recipe, "ridge", "fit", 500) > 0


def test_a_calibration_belongs_to_its_clouds_and_settings_and_not_to_a_number_of_workers(recipe):
    def with_resources(**given):
        return dataclasses.replace(recipe, resources=dataclasses.replace(recipe.resources, **given))

    own = measuring._fingerprint(recipe, 0.5)
    assert measuring._fingerprint(with_resources(workers=7), 0.5) == own
    assert measuring._fingerprint(recipe, 0.8) != own
    assert measuring._fingerprint(with_resources(memory_per_worker="2GiB"), 0.5) != own
    assert measuring._fingerprint(dataclasses.replace(recipe, closure="exact"), 0.5) != own


def test_rates_are_measured_once_and_anew_where_they_are_damaged_or_asked_for(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked, said = [], []
    monkeypatch.setattr(
        measuring, "measure", lambda recipe, clouds, progress: asked.append(clouds) or rates(a=len(asked))
    )
    first = measuring.rates_of(recipe, say=said.append)
    assert measuring.rates_of(recipe, say=said.append) == first
    assert asked == [0.4]  # those of the recipe's world
    (kept,) = (tmp_path / "smscale" / "rates").iterdir()
    assert str(kept) in said[-1]
    kept.write_text(kept.read_text()[:40])
    assert measuring.rates_of(recipe).seconds == {"a": 2}
    assert measuring.rates_of(recipe).seconds == {"a": 2}
    assert measuring.rates_of(recipe, again=True).seconds == {"a": 3}
    measuring.rates_of(dataclasses.replace(recipe, world=None))
    assert asked[-1] == CLOUDS


def test_seconds_of_a_run_are_those_of_its_tasks_and_stages(tiny_run, size):
    found = measuring._seconds(tiny_run / "ledger")
    assert set(found) - {"fuse blocks"} == {work.name for work in size.work()}
    assert all(found[work.name] > 0 for work in size.work())
    walls = measuring._Walls()
    watch = Observer([walls])
    for name in ("simulate", "match"):
        with watch.stage(name):
            time.sleep(0.01)
    assert set(walls.seconds) == {"match"}
    assert walls.seconds["match"] >= 0.01


def test_what_a_run_reads_once_is_no_part_of_the_rate():
    assert measuring._without_first([5.0, 1.0]) == 6.0
    assert measuring._without_first([1.0, 9.0, 1.0, 1.0]) == 5.0
    assert measuring._without_first([1.0, 1.5, 1.0]) == 3.5


@pytest.mark.cluster
def test_a_machine_is_measured(recipe, monkeypatch):
    monkeypatch.setattr(measuring, "LARGE", measuring.SMALL)
    small = dataclasses.replace(recipe, models={"xgb": {"folds": 2, "grid": {"max_depth": [2]}}})
    found = measuring.measure(small, 0.4, progress=False)
    planned = Size(with_region(small), STATIONS).work()
    assert all(found.seconds[work.name] > 0 for work in planned)
    assert set(found.beside) == set(STAGES)
    assert found.start > 1
    assert set(found.ratio) == {"cube.zarr", "maps.zarr"}


# -- the command ----------------------------------------------------------------------------------------


def test_the_command_prints_a_plan_as_text_and_as_json(recipe, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(forecast, "rates_of", lambda recipe, again, progress, say: asked.append(again) or rates())
    assert cli.main(["plan", str(recipe.path), "--no-what-if", "--workers", "3", "--stations", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["tiny"]
    assert [line.split()[1] for line in lines if line.startswith("workers")] == ["3"]
    assert cli.main(["plan", str(recipe.path), "--no-what-if", "--json", "--calibrate"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert run["name"] == "tiny"
    assert asked == [False, True]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"workers": 0}, "--workers 0"),
        ({"stations": -1}, "--stations -1"),
        ({"samples": 0}, "--samples 0"),
    ],
)
def test_odd_requests_are_refused(recipe, change, told):
    with pytest.raises(RecipeError, match=told):
        planning.plan(recipe, **change)


def test_a_block_that_does_not_fit_is_refused_before_anything_is_measured(recipe, monkeypatch):
    monkeypatch.setattr(forecast, "rates_of", lambda *_: pytest.fail("measured"))
    small = dataclasses.replace(recipe.resources, memory_per_worker="200MiB")
    with pytest.raises(RecipeError, match="memory_per_worker"):
        planning.plan(dataclasses.replace(recipe, resources=small))
