"""Recipes: every mistake is one line that names the key, what was found and what is expected."""

from pathlib import Path

import pytest

from smscale import cli, config
from smscale.errors import RecipeError

GOOD = """
name: here
inputs: raw
region: [101.0, 30.0, 104.0, 33.0]
period: [2017-07-10, 2017-07-20]
fusion: {holdout: 0.25, idw_power: 2}
models: {gabp: {generations: 10}, rf: }
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "here.yaml"
    path.write_text(GOOD)
    return path


def test_recipe_is_read_with_defaults_and_typed_values(recipe: Path) -> None:
    read = config.read(recipe, ["fusion.holdout=0.2", "chunks.lat=50", "models.gabp.population=20"])
    assert read.region == (101.0, 30.0, 104.0, 33.0)
    assert read.period == ("2017-07-10", "2017-07-20")
    assert (read.fusion.holdout, read.fusion.idw_power, read.chunks.lat, read.chunks.lon) == (0.2, 2.0, 50, 100)
    assert read.models == {"gabp": {"generations": 10, "population": 20}, "rf": {}}
    assert read.resolve("raw") == recipe.parent / "raw"


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("regoin=1", "unknown key regoin; did you mean region?"),
        ("fusion.holdut=1", "unknown key fusion.holdut; did you mean fusion.holdout?"),
        ("fusion.holdout=lots", "key fusion.holdout: found 'lots', expected a number"),
        ("fusion.holdout=1.5", "key fusion.holdout: found 1.5, expected a fraction between 0 and 1"),
        ("fusion.residuals=[sum]", r"key fusion.residuals\[0\]: found 'sum', expected one of 'difference', 'ratio'"),
        ("fusion=3", "key fusion: found 3, expected keys and values"),
        ("region=[104, 30, 101, 33]", "key region: found .*, expected .* west < east"),
        ("region=[1, 2, 3]", "key region: found .*, expected a list of 4"),
        ("period=[2017-07-20, 2017-07-10]", "key period: found .* not after the last"),
        ("period=[2017-07-20, soon]", "key period: found .* two ISO dates"),
        ("period=", "key period is missing"),
        ("seed=true", "key seed: found True, expected a whole number"),
        ("models={svm: {}}", "key models: found 'svm', expected models among"),
        ("predictors=[lst, elevatoin]", "key predictors: found 'elevatoin'.*did you mean elevation"),
        ("world=w.yaml", "exactly one of inputs.*found inputs and world"),
        ("name=a b", "key name: found 'a b'"),
        ("nonsense", "--set nonsense: expected key=value"),
    ],
)
def test_mistake_is_named(recipe: Path, setting: str, expected: str) -> None:
    with pytest.raises(RecipeError, match=expected) as caught:
        config.read(recipe, [setting])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: [", "not valid YAML"),
        ("- 1", "expected keys and values"),
        ("name: a\nseed: 1\nseed: 2", "key seed is given twice, again in line 3"),
        ("", "expected keys and values"),
        ("inputs: raw", "key name is missing; expected text"),
    ],
)
def test_broken_file_is_named(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=expected):
        config.read(path)


def test_command_line_exits_2_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", str(tmp_path / "none.yaml")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("smscale: recipe not found")
    assert error.count("\n") == 1


def test_workspace_that_cannot_be_made_is_named(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for workspace, expected in (
        (tmp_path / "file" / "w", "cannot be used as a workspace"),
        ("gs://bucket/w", "expected a folder or s3://bucket/prefix"),
    ):
        assert cli.main(["run", str(recipe), "--workspace", str(workspace)]) == 2
        error = capsys.readouterr().err
        assert expected in error
        assert error.count("\n") == 1


def test_refused_run_leaves_nothing_behind(recipe: Path, tmp_path: Path) -> None:
    assert cli.main(["run", str(recipe), "--workspace", str(tmp_path / "w")]) == 2  # its inputs are not there
    assert not (tmp_path / "w").exists()


def test_region_of_one_cell_is_refused(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--set", "region=[101.5, 30.6, 101.5001, 30.6001]"]
    assert cli.main(["run", str(recipe), "--workspace", str(tmp_path / "w"), *settings]) == 2
    assert "key region" in capsys.readouterr().err


def test_nan_is_no_setting(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("name: r\nworld: w.yaml\n")
    with pytest.raises(RecipeError, match=r"key match\.tolerance_hours: found nan, expected at least 0"):
        config.read(path, ["match.tolerance_hours=.nan"])
