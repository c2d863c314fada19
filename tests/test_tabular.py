"""Tables of one's own: read, sieved and described, then trained on and reported; bad ones refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from smscale import config, pipeline
from smscale.cli import main
from smscale.config import Split, Table
from smscale.errors import InputError
from smscale.models import load_model
from smscale.pipeline.table_reading import needed_columns, open_table, samples_of
from smscale.verify import verify
from smscale.workspace import Workspace

PREDICTORS = ["rain", "rain_3d", "warmth", "day_of_year_cos"]


def made(stations: int = 12, days: int = 40) -> pd.DataFrame:
    """Precipitation that warmth and the last days' rain decide, one row a station and day."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "name": np.repeat([f"s{i}" for i in range(stations)], days),
            "day": np.tile(pd.date_range("2020-02-01", periods=days), stations),
            "rain": rng.gamma(0.5, 4.0, stations * days),
            "warmth": 285 + rng.normal(0, 5, stations * days),
            "x": np.repeat(rng.uniform(100, 104, stations), days),
            "y": np.repeat(rng.uniform(28, 32, stations), days),
        }
    )
    frame["flux"] = 3 + 0.5 * frame["rain"] - 0.2 * (frame["warmth"] - 285) + rng.normal(0, 0.2, len(frame))
    return frame


SPEC = Table(
    "t.parquet",
    "flux",
    columns={"station": "name", "local_date": "day", "longitude": "x", "latitude": "y"},
    history={"rain": [3]},
    valid=(-50.0, 50.0),
)


def test_samples_hold_target_predictors_and_what_is_known_of_the_rows() -> None:
    raw = made()
    raw.loc[5, "flux"] = np.nan
    raw.loc[7, "flux"] = 1e6
    raw.loc[9, "warmth"] = np.inf
    table, flow, missing = samples_of(raw, SPEC, PREDICTORS)
    assert flow == {
        "all": 480,
        "target": 479,
        "valid": 478,
        "predictors": 453,
        "places": 453,
    }  # 1 and 2 first days of 12 stations
    assert missing == {"rain_3d": 24, "warmth": 1}
    assert set(table.columns) == {"station", "local_date", "longitude", "latitude", "flux", *PREDICTORS}
    assert np.isfinite(table[[*PREDICTORS, "flux"]].to_numpy()).all()


def test_history_sums_the_days_up_to_the_rows_own_by_station_and_stands_in_for_few_missing_days() -> None:
    raw = made()
    shuffled = raw.sample(frac=1, random_state=1)
    table, _, _ = samples_of(shuffled, SPEC, PREDICTORS)
    one = table[table["station"] == "s3"].set_index("local_date")["rain_3d"]
    expected = raw[raw["name"] == "s3"].set_index("day")["rain"].rolling(3).sum()
    np.testing.assert_allclose(one.sort_index(), expected.dropna(), rtol=1e-12)
    week = Table("t", "flux", SPEC.columns, {"rain": [10]})
    holed = raw.drop(index=[3, 5])  # 8 of 10 days are known: their mean stands for the others
    found, _, _ = samples_of(holed, week, ["rain_10d"])
    value = found[(found["station"] == "s0") & (found["local_date"] == "2020-02-10")]["rain_10d"].item()
    assert value == pytest.approx(10 * np.delete(raw["rain"].to_numpy()[:10], [3, 5]).mean())


def test_a_row_without_a_date_has_no_history_and_no_day_to_be_taken_on() -> None:
    raw = made()
    raw.loc[17, "day"] = pd.NaT
    table, flow, _ = samples_of(raw, SPEC, ["rain_3d", "warmth"])
    assert flow["predictors"] == flow["valid"] - 27  # 24 first days, the row without a date, and two days that need it
    assert table["local_date"].notna().all()
    thinned = Table("t", "flux", SPEC.columns, every=4)
    _, flow, _ = samples_of(raw, thinned, ["warmth"])
    assert flow["days"] == 12 * 10  # the row without a date is none of every fourth


def test_a_table_changed_in_its_middle_is_read_again(tmp_path: Path) -> None:
    recipe_of(tmp_path)
    raw = pd.concat([made(), *[made().assign(name=f"x{i}_" + made()["name"]) for i in range(30)]], ignore_index=True)
    path = recipe_of(tmp_path, table={"file": "t.csv", "target": "flux", "columns": dict(SPEC.columns)})
    raw.to_csv(tmp_path / "t.csv", index=False, float_format="%.6f")
    arguments = {"cluster": None, "only": "match", "progress": False}
    settings = ["predictors=[rain, warmth]"]
    workspace = Workspace(tmp_path / "w")
    pipeline.run(config.read(path, settings), workspace, **arguments)
    before = workspace.samples
    text = (tmp_path / "t.csv").read_text()
    at = text.index("\n", len(text) // 2) + 1
    line = text[at : text.index("\n", at)]
    other = line.replace(line.rsplit(",", 1)[1], "9" * len(line.rsplit(",", 1)[1]))
    (tmp_path / "t.csv").write_text(text.replace(line, other, 1))
    pipeline.run(config.read(path, settings), workspace, **arguments)
    assert not workspace.samples.equals(before)


def test_rows_without_a_place_beyond_float32_or_there_twice_are_left_out_and_counted() -> None:
    raw = made()
    raw.loc[100, "x"] = np.nan
    raw.loc[101, "warmth"] = 1e39
    spec = Table("t", "flux", SPEC.columns)
    _, flow, missing = samples_of(pd.concat([raw, raw[200:203]]), spec, ["rain", "warmth"])
    assert flow == {"all": 483, "target": 483, "predictors": 482, "places": 481, "repeats": 478}
    assert missing == {"warmth": 1}


@pytest.mark.parametrize(
    ("spec", "predictors", "what"),
    [
        ({"target": "nosuch"}, PREDICTORS, "lacks nosuch; it has name, day, rain"),
        ({}, ["nosuch"], "lacks nosuch"),
        ({}, ["name"], "column name holds no numbers, as 's0'"),
        ({"columns": {"station": "nosuch"}}, PREDICTORS, r"lacks nosuch \(table.columns\)"),
        ({"columns": {"local_date": "name"}}, ["rain"], "local_date holds no dates"),
        ({"columns": {**SPEC.columns, "row": "name"}}, ["rain"], "column row holds no numbers"),
        ({"history": {"name": [3]}}, ["rain"], "column name holds no numbers"),
        ({"columns": {}}, ["rain_3d"], r"\(for table.history\) lacks station, local_date"),
        ({"valid": (900.0, 901.0)}, PREDICTORS, "no row is left"),
        ({"columns": {**SPEC.columns, "local_date": "zoned"}}, PREDICTORS, "has a time zone; give local_date"),
    ],
)
def test_a_table_that_cannot_be_taken_is_refused_in_one_line(
    spec: dict[str, Any], predictors: list[str], what: str
) -> None:
    values = {f: getattr(SPEC, f) for f in SPEC.__dataclass_fields__} | spec
    with pytest.raises(InputError, match=what) as error:
        samples_of(made().assign(zoned=made()["day"].dt.tz_localize("UTC")), Table(**values), predictors)
    assert "\n" not in str(error.value)


def changed(**columns: Any) -> pd.DataFrame:
    return made().assign(**columns)


@pytest.mark.parametrize(
    ("raw", "spec", "predictors", "what"),
    [
        (made().iloc[:0], {}, ["rain"], "the table has no rows"),
        (made(), {"target": "flxu"}, ["rain"], "lacks flxu; it has .*; did you mean 'flux'?"),
        (made().rename(columns={"rain": "rain "}), {"history": {}}, ["rain"], "did you mean 'rain '?"),
        (changed(flux=1.5), {}, ["rain"], "flux is 1.5 in all 480 rows; there is nothing to learn"),
        (changed(rain=1, warmth=2), {}, ["rain", "warmth"], "each predictor has one value in all 480 rows"),
        (changed(copy=made()["flux"]), {}, ["rain", "copy"], "predictor copy equals the target in all 480 rows"),
        (made(), {"target": "x"}, ["longitude"], "predictor longitude is the target x itself"),
        (made(), {"history": {"flux": [3]}}, ["flux_3d"], "hold its target"),
        (changed(rain_3d=0.0), {}, ["rain_3d"], "has a column rain_3d already"),
        (
            changed(soil="clay"),
            {},
            ["soil"],
            "column soil holds no numbers, as 'clay', in 480 of 480 rows; code classes",
        ),
        (changed(rain=["trace", *made()["rain"][1:]]), {}, ["rain"], "as 'trace', in 1 of 480 rows"),
        (changed(rain="1,5"), {}, ["rain"], "as '1,5', in 480 of 480 rows; write decimals with a point"),
        (made(), {}, ["local_date"], "column local_date holds dates; a predictor is a number"),
        (changed(day="01.02.2020"), {}, ["rain"], "as '01.02.2020', in 480 of 480 rows; write them as 2017-06-10"),
        (changed(day=np.arange(480)), {}, ["rain"], "local_date holds no dates, as '0'"),
        (changed(weight=0.0), {}, ["rain"], "no row is left, no weight in all 480 .* weights are numbers above 0"),
        (changed(weight="heavy"), {}, ["rain"], "column weight holds no numbers, as 'heavy'"),
        (made(), {"valid": (90.0, 91.0)}, ["rain"], "target out of table.valid in all 480 .* flux lies between -?\\d"),
        (changed(warmth=np.nan), {}, ["warmth"], "a predictor is missing in all 480 .* most often warmth, in 480 rows"),
        (changed(flux=1e300), {"valid": None}, ["rain"], "flux holds no finite number that float32 can hold"),
        (made(), {"units": {"rian": "mm"}}, ["rain"], "table.units has rian, .*; did you mean rain?"),
        (
            made(),
            {"columns": {}, "history": {}},
            ["rain"],
            "has no station, which split.validation station-block needs",
        ),
    ],
)
def test_a_hostile_table_is_refused_in_one_line(
    raw: pd.DataFrame, spec: dict[str, Any], predictors: list[str], what: str
) -> None:
    values = {f: getattr(SPEC, f) for f in SPEC.__dataclass_fields__} | spec
    needed = needed_columns(Split(validation="station-block", compare=("random",)))
    with pytest.raises(InputError, match=what) as error:
        samples_of(raw, Table(**values), predictors, "the table", needed)
    assert "\n" not in str(error.value)


def test_rows_without_station_date_or_weight_are_left_out_and_counted() -> None:
    raw = changed(weight=1.0)
    raw.loc[3, "name"] = None
    raw.loc[4, "day"] = pd.NaT
    raw.loc[[5, 6, 7], "weight"] = [np.nan, np.inf, 0.0]
    table, flow, _ = samples_of(raw, Table("t", "flux", SPEC.columns), ["rain", "warmth"])
    assert (flow["places"], flow["labels"], flow["samples"]) == (480, 478, 475)
    assert len(table) == 475


def test_dates_may_be_whole_numbers_of_year_month_and_day() -> None:
    raw = made()
    raw["day"] = raw["day"].dt.strftime("%Y%m%d").astype(int)
    table, _, _ = samples_of(raw, SPEC, PREDICTORS)
    expected, _, _ = samples_of(made(), SPEC, PREDICTORS)
    pd.testing.assert_frame_equal(table, expected)


def test_what_a_split_needs_is_named_with_its_key() -> None:
    split = Split(validation="random", inner="time-block", compare=("space-time", "station-block"))
    assert needed_columns(split) == {
        "local_date": "split.inner time-block",
        "row": "split.compare space-time",
        "station": "split.compare station-block",
    }
    spec = Table("t", "flux", {"station": "name", "local_date": "day"})
    with pytest.raises(
        InputError, match=r"has no row and col or longitude and latitude, which split\.compare space-time"
    ):
        samples_of(made(), spec, ["rain"], needed=needed_columns(split))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "No columns to parse"),
        (b"a;b\n1,5;2\n", "its columns lie between semicolons; save it with commas, and points in its decimals"),
        (b"a\tb\n1\t2\n", "its columns lie between tabs"),
        (b"a,b,a\n1,2,3\n", "column a is there twice"),
        (b"a,b\n1,2\n1,2,3\n", "not a parquet or CSV table .*Expected 2 fields in line 3"),
        ("a,b\nK\u00f6ln,2\n".encode("latin-1"), "no UTF-8 text"),
        ("a,b\n1,2\n".encode("utf-16"), "not a parquet or CSV table"),
        (b"PK\x03\x04 a workbook", "not a parquet or CSV table"),
        (b"PAR1 and no more", "not a parquet or CSV table"),
    ],
)
def test_a_file_that_is_no_table_is_refused_in_one_line(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(InputError, match=what) as error:
        open_table(tmp_path / "t.csv")
    assert "\n" not in str(error.value)


def test_a_byte_order_mark_and_a_parquet_of_any_name_are_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + made().to_csv(index=False).encode())
    assert open_table(tmp_path / "t.csv").columns.tolist() == made().columns.tolist()
    made().to_parquet(tmp_path / "t.data")
    pd.testing.assert_frame_equal(open_table(tmp_path / "t.data"), made())
    whole = (tmp_path / "t.data").read_bytes()
    (tmp_path / "t.parquet").write_bytes(whole[:-500])
    with pytest.raises(InputError, match="not a parquet or CSV table"):
        open_table(tmp_path / "t.parquet")


def recipe_of(folder: Path, **changes: Any) -> Path:
    """A recipe of the made table, on models that fit in moments."""
    made().to_parquet(folder / "t.parquet")
    values = {
        "name": "table",
        "table": {
            "file": "t.parquet",
            "target": "flux",
            "columns": dict(SPEC.columns),
            "history": {"rain": [3]},
            "units": {"flux": "W m-2", "rain": "mm"},
        },
        "predictors": PREDICTORS,
        "split": {"validation": "station-block", "compare": ["random", "station-block"], "folds": 2},
        "models": {
            "gabp": {"generations": 5, "max_steps": 10, "members": 1, "population": 10},
            "rf": {"trees": 10, "folds": 2, "grid": {"min_samples_leaf": [5]}},
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


def test_a_table_is_trained_on_and_reported_and_the_models_know_its_target_and_units(tmp_path: Path) -> None:
    recipe = config.read(recipe_of(tmp_path))
    workspace = Workspace(tmp_path / "w")
    reports = pipeline.run(recipe, workspace, cluster=None, progress=False)
    model = load_model(workspace.model("gabp"))
    assert (model.target, model.target_units) == ("flux", "W m-2")
    assert dict(zip(model.features, model.units, strict=True))["rain"] == "mm"
    rows = pd.DataFrame(reports["train"]["splits"]).set_index(["split", "model"])
    assert rows.loc[("station-block", "rf"), "rmse"] < rows.loc[("station-block", "mean"), "rmse"]
    page = (workspace.report / "index.html").read_text()
    assert "W m-2" in page
    assert "m³" not in page
    assert json.loads((workspace.report / "metrics.json").read_text())["target"] == "flux"
    assert verify(workspace).exit_code == 0
    said: list[str] = []
    pipeline.run(recipe, workspace, cluster=None, progress=False, say=said.append)
    assert all("nothing to do" in line for line in said if line.split()[0] in ("match", "train", "evaluate"))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"table": {"file": "nosuch.csv", "target": "flux"}}, "no such table; set table.file"),
        ({"table": {"file": "recipe.yaml", "target": "flux"}}, "lacks flux"),
        ({"table": {"file": ".", "target": "flux"}}, "a folder; set table.file to a parquet or CSV file"),
        (
            {"table": {"file": "t.parquet", "target": "flux"}, "predictors": ["rain"]},
            "has no station, which split.valid",
        ),
        ({"table": {"file": "${NO_SUCH_NAME}/t", "target": "flux"}}, "NO_SUCH_NAME is not set"),
        ({"table": {"file": "t.parquet", "target": "rain"}}, "predictors beside the target itself"),
        ({"table": {"file": "t.parquet", "target": "flux", "columns": {"place": "x"}}}, "names among station"),
        ({"table": {"file": "t.parquet", "target": "flux", "history": {"rain": 3}}}, "a list of numbers of days"),
        ({"inputs": "raw"}, "found inputs and table"),
        ({"name": ".."}, "a name without spaces or slashes"),
        ({"split": {"validation": "station-block", "fraction": 0.7}}, "at most 0.5 where blocks are held out"),
        ({"models": {"gabp": {"population": None}}}, "models.gabp.population: found None, expected a whole number"),
        ({"models": {"gabp": {"population": 10.5}}}, "found 10.5, expected a whole number"),
        ({"models": {"gabp": {"decays": 3}}}, "found 3, expected a list, each a number"),
        ({"models": {"gabp": {"population": 1}}}, "population must be at least 4"),
        ({"models": {"rf": {"trees": float("inf")}}}, "found inf, expected"),
        ({"models": {"rf": {1: 2, "foo": 2}}}, "has no setting 1, foo"),
        ({"models": {"cnn": {"filters": 3}}}, "found 3, expected a list"),
    ],
)
def test_a_wrong_recipe_ends_with_one_line_and_code_2(
    tmp_path: Path, changes: dict[str, Any], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["run", str(recipe_of(tmp_path, **changes)), "--workspace", str(tmp_path / "w"), "--cluster", "none"])
    said = capsys.readouterr().err.strip()
    assert code == 2
    assert what in said
    assert said.count("\n") == 0


@pytest.mark.real_data
def test_uscrn_keeps_the_rows_that_its_recipe_asks_for(real: Callable[[str], Path]) -> None:
    path = Path(__file__).parent.parent / "pipelines" / "uscrn-2020.yaml"
    recipe = config.read(path)
    assert recipe.table is not None
    raw = pd.read_parquet(real("stations/uscrn_daily_2020.parquet"))
    table, flow, _ = samples_of(raw, recipe.table, recipe.predictors)
    assert flow["all"] == 56_730
    assert flow["target"] == int(raw["soil_moisture_5_daily"].notna().sum())
    assert table["station"].nunique() > 90
