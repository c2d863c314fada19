"""Raw files as they come: broken, mislabelled, twice, absent. What can be read is read, the rest is named, and nobody sees half a result."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml

import smscale
from smscale import cli, config, pipeline
from smscale.errors import InputError, RecipeError, SmscaleError
from smscale.schema import Status
from smscale.workspace import Workspace

TINY = Path(__file__).parent / "recipes" / "tiny.yaml"
#: One block of everything, one small model: what a bad file does needs no more.
QUICK: dict[str, Any] = {
    "region": [102.8, 31.66, 103.7, 32.34],
    "period": ["2017-07-10", "2017-07-15"],
    "seed": 7,
    "chunks": {"time": 1, "lat": 100, "lon": 100, "shard": [12, 1, 1]},
    "smap": {"quality": "weighted"},
    "match": {"min_valid_fraction": 0.3, "min_lst_valid_fraction": 0.05},
    "split": {"inner_folds": 2},
    "models": {"rf": {"trees": 5, "folds": 2, "grid": {"min_samples_leaf": [2]}}},
}


def raw_folder(run: Path, target: Path) -> Path:
    """The nature run's product files as a user's download: hard links."""
    shutil.copytree(
        run / "world",
        target,
        copy_function=os.link,
        ignore=shutil.ignore_patterns("ledger", "truth.zarr", "*.json", "csv"),
    )
    return target


def replace(path: Path, content: bytes) -> None:
    """Other content under the same name; the file it was linked to stays."""
    path.unlink()
    path.write_bytes(content)


def one(folder: Path, pattern: str) -> Path:
    return next(iter(sorted(folder.rglob(pattern))))


def write_recipe(folder: Path, inputs: str = "raw", **changes: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"name": "bad", "inputs": inputs, **QUICK, **changes}))
    return path


def run(recipe: Path, root: Path, *settings: str, **options: Any) -> dict[str, Any]:
    return pipeline.run(config.read(recipe, settings), Workspace(root), cluster=None, progress=False, **options)


# -- everything at once -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def battered(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace that came through a folder in which much is wrong."""
    folder = tmp_path_factory.mktemp("battered")
    raw = raw_folder(tiny_run, folder / "raw")
    damage_granules(raw)
    damage_stations(raw / "stations" / "ismn" / "TINY")
    damage_dem(raw / "dem")
    run(write_recipe(folder), folder / "run")
    return folder / "run"


def damage_granules(raw: Path) -> None:
    lst = raw / "modis" / "MYD11A1"
    whole = one(lst, "*A2017192*")
    outside = lst / whole.name.replace("h26v05", "h27v06")
    shutil.copy(whole, outside)
    replace(whole, whole.read_bytes()[:150_000])
    replace(one(lst, "*A2017193*"), b"")
    replace(one(lst, "*A2017194*"), b"<!DOCTYPE html><html><title>Earthdata Login</title></html>")
    replace(one(lst, "*A2017195*"), one(raw, "MOD13A2*.hdf").read_bytes())
    newer = one(lst, "*A2017190*")
    shutil.copy(newer, lst / re.sub(r"\.\d{13}\.hdf", ".2021001120000.hdf", newer.name))
    other = raw / "eight days"
    other.mkdir()
    shutil.copy(newer, other / newer.name.replace("MYD11A1", "MYD11A2"))
    (raw / "MYD11A1.hdf").write_bytes(b"<html>")
    smap = raw / "smap"
    replace(one(smap, "*_20170711_*"), one(smap, "*_20170711_*").read_bytes()[:60_000])
    one(smap, "*_20170714_*").unlink()
    twice = one(smap, "*_20170712_*")
    shutil.copy(twice, smap / twice.name.replace("_001.h5", "_002.h5"))
    (raw / "own stations.csv").write_text("name,when,value\nA,2017-07-10,0.2\n")


def damage_stations(folder: Path) -> None:
    """One wrong thing in each of seven of twelve stations."""

    def change(station: str, edit: Callable[[list[str]], list[str]]) -> None:
        path = one(folder / station, "*_sm_*.stm")
        replace(path, "".join(edit(path.read_text().splitlines(keepends=True))).encode())

    def with_value(line: str, value: str) -> str:
        date, clock, _, *rest = line.split()
        return " ".join([date, clock, value, *rest]) + "\n"

    change("S001", lambda lines: [*lines[:5], "2017/07/10 0§:0\n", *lines[5:]])
    change("S002", lambda lines: [re.sub(r"(\S+ +\S+ +\S+) +\S+ +\S+", r"\1 48.0 16.0", lines[0]), *lines[1:]])
    change("S003", lambda lines: [*lines[:20], *(with_value(line, "-99") for line in lines[20:25]), *lines[25:]])
    change("S004", lambda lines: [*lines[:20], *(with_value(line, "2.3") for line in lines[20:25]), *lines[25:]])
    change(
        "S005",
        lambda lines: [lines[0], *(with_value(line, f"{100 * float(line.split()[2]):.2f}") for line in lines[1:])],
    )
    change("S006", lambda lines: ["<html>\n"])
    change("S007", lambda lines: [])


def damage_dem(folder: Path) -> None:
    """A hole in one tile; another tile is not there."""
    path = folder / "N31E103.tif"
    with rasterio.open(path) as source:
        profile, elevation = source.profile | {"nodata": -32768}, source.read()
    elevation[
        :, 200:300, 200:300
    ] = -32768  # rows from 32 N, columns from 103 E, 3 arc-seconds: 31.75-31.83 N, 103.17-103.25 E
    path.unlink()
    with rasterio.open(path, "w", **profile) as target:
        target.write(elevation)
    (folder / "N32E102.tif").unlink()


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("MYD11A1.A2017192.h26v05", "truncated"),
        ("MYD11A1.A2017193.h26v05", "empty"),
        ("MYD11A1.A2017194.h26v05", "web page"),
        ("MYD11A1.A2017195.h26v05", "say MOD13A2"),
        ("MYD11A1.A2017192.h27v06", "outside the region"),
        ("MYD11A1.A2017190.h26v05", "older production"),
        ("MYD11A2.A2017190.h26v05", "older production"),  # its metadata say MYD11A1
        ("MYD11A1.hdf", "web page"),
        ("SMAP_L3_SM_P_20170711", "truncated"),
        ("SMAP_L3_SM_P_20170712_R18290_001", "older production"),
        ("SPL3SMP", "2 of 7 missing: 2017-07-11, 2017-07-14"),
        ("LST", "3 of 7 missing"),
        ("DEM", "1 of 4 missing: N32E102"),
        ("own stations.csv", "not a file that is read here"),
        ("S001", "broken line"),
        ("S002", "outside the region"),
        ("S003", "-99|missing"),
        ("S004", "impossible|outside"),
        ("S005", "percent"),
        ("S006", "neither of ISMN's layouts"),
        ("S007", "neither of ISMN's layouts|empty"),
    ],
)
def test_every_bad_file_is_counted_and_named(battered: Path, file: str, what: str) -> None:
    problems = smscale.open(battered).metrics["data"]["problems"]
    named = [p for p in problems if file in p["file"]]
    assert any(re.search(what, p["what"]) for p in named), named or [p["file"] for p in problems]
    assert all(p["count"] >= 1 for p in named)
    page = (battered / "report" / "index.html").read_text()
    assert named[0]["file"] in page


def test_the_rest_of_the_run_is_whole(battered: Path) -> None:
    opened = smscale.open(battered)
    assert set(opened.maps.data_vars) >= {"soil_moisture_rf", "gda_kriging", "status"}
    assert (battered / "report" / "index.html").exists()
    names = opened.stations["station"].values.tolist()
    assert len(names) == 12 - 4, "outside the region, in percent, and two that are no station files"
    assert not {"S002", "S005", "S006", "S007"} & set(names)


def test_stations_with_impossible_values_keep_the_others(battered: Path, tiny_run: Path) -> None:
    found, whole = smscale.open(battered).stations.load(), smscale.open(tiny_run).stations.load()
    assert float(found["soil_moisture"].max()) <= 1.0
    assert float(found["soil_moisture"].min()) >= 0.0
    for name, lost in (("S001", 0), ("S003", 5), ("S004", 5)):
        here = found["soil_moisture"].sel(station=name).notnull().sum()
        there = whole["soil_moisture"].sel(station=name).notnull().sum()
        assert there - lost <= here <= there, "no more than the bad lines are gone"


def test_a_hole_in_the_terrain_is_a_hole_in_the_map_and_says_so(battered: Path) -> None:
    maps = smscale.open(battered).maps
    status = maps["status_rf"].isel(time=7)
    for lat, lon in ((31.79, 103.21), (32.2, 102.9)):  # the hole; the tile that is not there
        assert np.isnan(maps["soil_moisture_rf"].isel(time=7).sel(lat=lat, lon=lon, method="nearest"))
        assert int(status.sel(lat=lat, lon=lon, method="nearest")) & Status.PREDICTOR_MISSING


# -- where the run cannot go on -----------------------------------------------------------------


def test_without_stations_the_run_goes_on_unfused(tiny_run: Path, tmp_path: Path) -> None:
    raw = raw_folder(tiny_run, tmp_path / "raw")
    shutil.rmtree(raw / "stations")
    said: list[str] = []
    run(write_recipe(tmp_path), tmp_path / "run", say=said.append)
    opened = smscale.open(tmp_path / "run")
    assert opened.metrics["fusion"]["stations"] == 0
    assert "station" in opened.metrics["fusion"]["why"]
    assert "stations" not in opened.metrics
    assert {"soil_moisture_rf", "status_rf", "uncertainty"} <= set(opened.maps.data_vars)
    assert any(p["file"] == "STATIONS" for p in opened.metrics["data"]["problems"])
    assert "soil_moisture_rf" in "".join(said)
    assert "STATIONS" in (tmp_path / "run" / "report" / "index.html").read_text()


def test_station_files_that_are_none_are_named_and_the_run_goes_on(tiny_run: Path, tmp_path: Path) -> None:
    raw = raw_folder(tiny_run, tmp_path / "raw")
    for path in (raw / "stations").rglob("*_sm_*.stm"):
        replace(path, b"\x00\x01 nothing here\n")
    report = run(write_recipe(tmp_path), tmp_path / "run", only="ingest")["ingest"]
    assert report["stations"] == 0
    assert any("no station could be read" in p["what"] for p in report["problems"])


@pytest.mark.parametrize(
    ("without", "expected"),
    [
        ("MOD16A2", r"ET \(MOD16A2.*missing.*Get them from"),
        ("MOD13A2", r"VI \(M.D13A2.*Get them from"),
        ("MCD12Q1", r"LC \(MCD12Q1.*Get them from"),
        ("MYD11A1", r"LST \(MYD11A1.*2017-07-09 h26v05.*Get them from"),
        ("smap", r"SPL3SMP.*7 of 7 missing.*Get them from"),
        ("dem", r"DEM.*N31E102.*Get them from"),
    ],
)
def test_a_family_that_is_not_there_stops_the_run_in_one_line(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], without: str, expected: str
) -> None:
    raw = raw_folder(tiny_run, tmp_path / "raw")
    shutil.rmtree(one(raw, without))
    assert command(write_recipe(tmp_path), tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert re.search(expected, error), error
    assert error.count("\n") == 1
    assert not (tmp_path / "run" / "cube.zarr").exists()


def command(recipe: Path, root: Path, *more: str) -> int:
    return cli.main(["run", str(recipe), "--workspace", str(root), "--quiet", "--cluster", "none", *more])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"period": ["2016-07-10", "2016-07-15"]}, r"SPL3SMP.*7 of 7 missing: 2016-07-09"),
        ({"region": [10.0, 47.0, 11.0, 48.0]}, r"LST.*h18v04"),
        ({"inputs": "elsewhere"}, r"elsewhere"),
        ({"inputs": "empty"}, r"SPL3SMP.*missing"),
    ],
)
def test_nothing_to_work_on_stops_the_run_in_one_line(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], expected: str
) -> None:
    raw_folder(tiny_run, tmp_path / "raw")
    (tmp_path / "empty").mkdir()
    assert command(write_recipe(tmp_path, **changes), tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert re.search(expected, error), error
    assert error.count("\n") == 1


def test_no_cloud_free_sample_stops_in_one_line(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The only LST is of an afternoon on which SMAP saw nothing."""
    raw = raw_folder(tiny_run, tmp_path / "raw")
    for path in (raw / "modis" / "MYD11A1").glob("*.hdf"):
        if "A2017196" not in path.name:
            path.unlink()
    assert command(write_recipe(tmp_path), tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert re.search(r"no training sample is left \(all 108 -> .*min_lst_valid_fraction", error), error
    assert error.count("\n") == 1
    assert not (tmp_path / "run" / "samples.parquet").exists()


def test_too_few_samples_stop_in_one_line_and_nothing_old_shows(
    tiny_run: Path, tmp_path: Path, copy_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy_run(tiny_run, tmp_path / "run")
    setting = "match.min_lst_valid_fraction=0.99999"
    assert command(TINY, root, "--set", setting) == 2
    error = capsys.readouterr().err
    assert "samples are too few to train on" in error
    assert error.count("\n") == 1
    for name in ("models", "maps.zarr", "report/index.html", "report/metrics.json"):
        assert not (root / name).exists(), name
    with pytest.raises(SmscaleError):
        _ = smscale.open(root).maps


def test_different_algorithms_are_not_mixed(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A day of another default algorithm, in blocks of one day that see only some of the files."""
    from smscale.pipeline.ingest import coarse

    raw_folder(tiny_run, tmp_path / "raw")
    original = coarse.open_smap

    def versions(path: Path, algorithm: str | None = None, grid: Any = None) -> Any:
        found = original(path, algorithm=algorithm, grid=grid)
        return found.assign_attrs(algorithm="scav") if "20170715" in str(path) else found

    monkeypatch.setattr(coarse, "open_smap", versions)
    recipe = write_recipe(tmp_path, chunks={"time": 1, "lat": 100, "lon": 100, "shard": [2, 1, 1]})
    with pytest.raises(InputError, match="different default algorithms"):
        run(recipe, tmp_path / "run", only="ingest")


def test_algorithms_of_blocks_that_do_not_see_each_other_are_compared() -> None:
    from smscale.pipeline.ingest.coarse import refuse_mixed

    refuse_mixed([("dca", "9"), ("dca", "9")])
    with pytest.raises(InputError, match=r"different default algorithms \(dca, scav\)"):
        refuse_mixed([("dca", "9"), ("scav", "9")])
    with pytest.raises(InputError, match="versions 8 and 9"):
        refuse_mixed([("dca", "9"), ("dca", "8")])


# -- recipes with mistakes ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("nmae=x", "unknown key nmae; did you mean name"),
        ("fusion.hold=0.2", "unknown key fusion.hold; did you mean fusion.holdout"),
        ("seed=1.5", "key seed: found 1.5, expected a whole number"),
        ("seed=-1", "key seed: found -1"),
        ("seed=4294967296", "key seed"),
        ("region=[103, 31, 102, 32]", "key region: found .*west < east"),
        ("region=[103, 31, 104]", "key region: found .*a list of 4"),
        ("period=[2017-07-15, 2017-07-10]", "key period"),
        ("period=[2017-13-01, 2017-13-05]", "not a YAML value|key period"),
        ("period=soon", "key period: found 'soon'"),
        ("predictors=[lts]", "key predictors: found 'lts', .*did you mean lst"),
        ("predictors=[]", "key predictors"),
        ("models={svm: {}}", "key models: found 'svm'"),
        ("models={rf: 3}", "key models.rf: found 3"),
        ("models={rf: {treees: 3}}", "model 'rf' has no setting treees"),
        ("models={rf: {trees: many}}", "models.rf.trees: found 'many', expected a whole number"),
        ("models={xgb: {grid: {max_depht: [2]}}}", "models.xgb: .*grid: max_depht is unknown"),
        ("fusion.variogram=cubist", "key fusion.variogram: found 'cubist'"),
        ("fusion.idw_neighbours=0", "key fusion.idw_neighbours: found 0, expected at least 1"),
        ("fusion.residuals=[]", "key fusion.residuals"),
        ("fusion.interpolators=[idw, idw]", "key fusion.interpolators"),
        ("split.inner_folds=1", "key split.inner_folds: found 1, expected at least 2"),
        ("split.block_days=5", "key split.block_days: found 5, expected at least 10"),
        ("split.block_cells=1", "key split.block_cells: found 1, expected at least 3"),
        ("split.compare=[station-block]", "key split: found 'station-block', expected blocks of time or space"),
        ("split.validation=wild", "key split.validation: found 'wild'"),
        ("bounds=[0.6, 0.0]", "key bounds"),
        ("smap.algorithm=magic", "key smap.algorithm: found 'magic'"),
        ("resources.memory_per_worker=lots", "key resources.memory_per_worker: found 'lots'"),
        ("resources.workers=0", "key resources.workers"),
        ("match.exclude_land_cover=[99]", "key match.exclude_land_cover: found 99"),
        ("chunks.time=0", "key chunks"),
        ("grid.step=0.013", "step must divide one degree"),
        ("grid={kind: ease2, resolution: 7}", "resolution must be one of"),
        ("outline=nowhere.geojson", "nowhere.geojson"),
        ("world=nowhere.yaml", "nowhere.yaml: no such world file"),
        ("fusion.holdout=[", "not a YAML value"),
        ("x", "expected key=value"),
    ],
)
def test_a_mistake_in_a_recipe_gives_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, expected: str
) -> None:
    root = tmp_path / "run"
    assert command(TINY, root, "--set", setting) == 2
    error = capsys.readouterr().err
    assert re.search(expected, error), error
    assert error.startswith("smscale: ")
    assert error.count("\n") == 1
    assert not {p.name for p in root.glob("*")} - {".lock", "ledger"}, "nothing was begun"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: x", "expected exactly one of inputs"),
        ("name: x\ninputs: raw\nworld: w.yaml", "found inputs and world"),
        ("name: x\ninputs: raw\nperiod: [2017-06-10, 2017-06-12]", "key region is missing"),
        ("name: x\ninputs: raw\nregion: [100, 30, 101, 31]", "key period is missing"),
        (
            "name: x\ninputs: raw\nregion: [100, 30, 101, 31]\nperiod: [2017-02-30, 2017-03-01]",
            "not valid YAML|key period",
        ),
        ("- a\n- b", "expected keys and values"),
        ("a: [", "not valid YAML"),
        ("\x00", "not valid YAML"),
        ("", "expected keys and values"),
    ],
)
def test_a_recipe_that_says_too_little_gives_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, expected: str
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert command(path, tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert re.search(expected, error), error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_papers_recipe_without_files_says_what_is_missing_and_how_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "sichuan-2017-paper.yaml"
    shutil.copy(Path(__file__).parents[1] / "pipelines" / "sichuan-2017-paper.yaml", recipe)
    for made in (False, True):
        if made:
            (tmp_path / str(config.read(recipe).inputs)).mkdir(parents=True)
        assert command(recipe, tmp_path / "run") == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        for family in ("SPL3SMP", "LST", "VI", "ET", "LC", "DEM"):
            assert re.search(rf"{family} \(.*?missing.*?Get them from", error), family
        assert "https://" in error


def test_a_world_is_not_simulated_over_another(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_run / "world", tmp_path / "world", copy_function=os.link)
    world = yaml.safe_load((TINY.parent / "../../pipelines/worlds/tiny.yaml").read_text())
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(world | {"seed": 8}))
    assert cli.main(["simulate", str(other), str(tmp_path / "world"), "--cluster", "none", "--quiet"]) == 2
    assert "holds another nature run" in capsys.readouterr().err
    assert json.loads((tmp_path / "world" / "report.json").read_text())["world"] == "tiny"
    with pytest.raises(RecipeError, match="no such world"):
        pipeline.simulate(tmp_path / "none.yaml", tmp_path / "world")
