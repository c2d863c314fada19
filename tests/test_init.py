"""Recipes that `init` writes: they are read again, and say rightly what they need."""

import json
import re
from datetime import date
from pathlib import Path

import pytest

from smscale import config
from smscale.errors import InputError, RecipeError, SmscaleError
from smscale.pipeline.init import init
from smscale.pipeline.layout import layout_of
from smscale.sources.catalogue import Catalogue

SICHUAN = "97.35,26.05,108.54,34.31"
SEASONS = "2017-06-10,2017-11-30"
TODAY = date(2026, 11, 22)


def table(text: str) -> dict[str, list[str]]:
    """Rows of the comment's table by family."""
    rows = re.findall(r"^#   ([A-Z0-9]{2,7}) +(.+)$", text, re.MULTILINE)
    return {family: re.split(r" {2,}", row.strip()) for family, row in rows}


def test_the_papers_region_and_period_give_a_recipe_that_is_read(tmp_path: Path) -> None:
    said: list[str] = []
    path = init("sichuan", SICHUAN, SEASONS, out=tmp_path / "sichuan.yaml", say=said.append, today=TODAY)
    recipe = config.read(path)
    assert recipe.region == (97.35, 26.05, 108.54, 34.31)
    assert recipe.period == ("2017-06-10", "2017-11-30")
    assert recipe.grid.step == 0.01
    assert recipe.inputs == "raw/sichuan"
    assert dict(recipe.products) == {"LST": "MYD11A1", "VI": "MOD13A2", "ET": "MOD16A2GF", "LC": "MCD12Q1"}
    assert layout_of(recipe).grid.shape == (826, 1119)
    text = path.read_text()
    rows = table(text)
    # 175 UTC days (06:00 of 10 June is still 9 June in UTC), on 4 tiles; 22 and 11 composites; 9 x 12 degrees.
    assert rows["SPL3SMP"] == ["SPL3SMP 009", "2017-06-09 to 2017-11-30, UTC days", "175", "5.2"]
    assert rows["LST"][2] == str(175 * 4)
    assert rows["ET"][1:3] == ["22 composites of 8 days from 2017-06-10", str(22 * 4)]
    assert rows["VI"][1:3] == ["11 composites of 16 days from 2017-06-10", str(11 * 4)]
    assert rows["LC"][1:3] == ["2017", "4"]
    assert rows["DEM"][2] == str(9 * 12)
    assert "MODIS tiles: h26v05 h26v06 h27v05 h27v06" in text
    assert "N26E097 to N34E108" in text
    assert "no data before 2021" in text  # why ET is the gap-filled product
    assert max(map(len, text.splitlines())) <= 120
    assert "smscale fetch" in "".join(said)


def test_what_the_table_counts_is_what_an_empty_folder_lacks(tmp_path: Path) -> None:
    """The comment and the fetch come from one calendar; VIIRS files are counted by day and night."""
    path = init(
        "late",
        [100.2, 30.1, 101.4, 31.2],
        ["2027-01-05", "2027-03-01"],
        out=tmp_path / "a.yaml",
        today=date(2028, 1, 1),
    )
    recipe = config.read(path)
    assert recipe.products["LST"] == "VJ121A1"
    assert "ET" not in recipe.products
    layout = layout_of(recipe)
    nothing = Catalogue(tmp_path, (), (), (), (), (), ())
    lacks = nothing.missing(nothing.needs(*layout.period, layout.grid.bounds, False, recipe.products))
    rows = table(path.read_text())
    assert {lack.family: str(len(lack.absent)) for lack in lacks} == {family: row[2] for family, row in rows.items()}
    assert "NOTE: ET: no product that is read here exists" in path.read_text()


def test_an_outline_is_named_and_its_box_is_the_region(tmp_path: Path) -> None:
    ring = [[102.123456789, 30.5], [104.0, 30.5], [103.0, 32.25], [102.123456789, 30.5]]
    (tmp_path / "maps").mkdir()
    outline = tmp_path / "maps" / "basin.geojson"
    outline.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    path = init("basin", str(outline), SEASONS, out=tmp_path / "recipes" / "basin.yaml", today=TODAY)
    recipe = config.read(path)
    assert recipe.resolve(str(recipe.outline)).resolve() == outline.resolve()
    assert recipe.region == pytest.approx((102.123456789, 30.5, 104.0, 32.25), abs=1e-5)


def test_west_of_greenwich_the_day_after_is_needed(tmp_path: Path) -> None:
    path = init(
        "plains", "-100,35,-97,38", "2018-07-01,2018-07-31", out=tmp_path / "p.yaml", inputs="../data", today=TODAY
    )
    assert table(path.read_text())["SPL3SMP"][1] == "2018-07-01 to 2018-08-01, UTC days"
    assert "100°W to 97°W" in path.read_text()
    assert config.read(path).inputs == "../data"


def test_before_the_first_day_of_smap_nothing_is_asked_for(tmp_path: Path) -> None:
    path = init("first", SICHUAN, "2015-03-31,2015-04-30", out=tmp_path / "p.yaml", today=TODAY)
    assert table(path.read_text())["SPL3SMP"][1] == "2015-03-31 to 2015-04-30, UTC days"


def test_users_are_told_of_drifting_satellites_small_regions_and_days_ahead(tmp_path: Path) -> None:
    said: list[str] = []
    text = init("aqua", SICHUAN, "2023-06-01,2023-06-30", out=tmp_path / "a.yaml", today=TODAY).read_text()
    assert "Aqua drifts" in text
    assert "successors" not in text
    init("soon", "103,30,104,31", "2026-11-01,2026-12-31", out=tmp_path / "b.yaml", today=TODAY, say=said.append)
    assert "after today, 2026-11-22" in said[0]
    assert "SMAP cells of 36 km: too few" in said[0]
    text = init("gap", SICHUAN, "2019-06-01,2019-06-30", out=tmp_path / "c.yaml", today=TODAY).read_text()
    assert "the instrument rested" in text


def test_a_recipe_that_is_there_is_kept_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("mine")
    with pytest.raises(RecipeError, match="--force"):
        init("a", SICHUAN, SEASONS, out=path, today=TODAY)
    assert path.read_text() == "mine"
    init("a", SICHUAN, SEASONS, out=path, force=True, today=TODAY)
    assert config.read(path).name == "a"


@pytest.mark.parametrize(
    ("name", "region", "period", "step", "said"),
    [
        ("two words", SICHUAN, SEASONS, 0.01, "without spaces"),
        ("a", "26.05,97.35,34.31,108.54", SEASONS, 0.01, "swapped"),
        ("a", "108,26,97,34", SEASONS, 0.01, "west < east"),
        ("a", "97,26,108", SEASONS, 0.01, "expected west,south,east,north"),
        ("a", "sichuan", SEASONS, 0.01, "GeoJSON"),
        ("a", "nowhere.geojson", SEASONS, 0.01, "there is no file nowhere.geojson"),
        ("a", "0,84,10,89", SEASONS, 0.01, "85.044"),
        ("a", "170,50,190,60", SEASONS, 0.01, "180th meridian"),
        ("a", SICHUAN, "2017-06-10", 0.01, "expected first and last day"),
        ("a", SICHUAN, "2017-06-31,2017-07-01", 0.01, "expected first and last day"),
        ("a", SICHUAN, "2017-11-30,2017-06-10", 0.01, "before the first"),
        ("a", SICHUAN, "2014-06-10,2014-11-30", 0.01, "begins on 2015-03-31"),
        ("a", SICHUAN, "2031-06-10,2031-11-30", 0.01, "ahead of today"),
        ("a", SICHUAN, SEASONS, 0.013, "divide one degree"),
        ("a", SICHUAN, SEASONS, 5.0, "--step"),
        ("a", "97.351,26.051,97.352,26.052", SEASONS, 0.01, "enlarge"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    tmp_path: Path, name: str, region: str, period: str, step: float, said: str
) -> None:
    with pytest.raises(SmscaleError, match=re.escape(said)) as caught:
        init(name, region, period, step=step, out=tmp_path / "a.yaml", today=TODAY)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "a.yaml").exists()


def test_longitudes_from_0_to_360_are_the_same_region(tmp_path: Path) -> None:
    west = init("a", "-105,38,-101,41", SEASONS, out=tmp_path / "a.yaml", today=TODAY)
    east = init("a", "255,38,259,41", SEASONS, out=tmp_path / "b.yaml", today=TODAY)
    assert config.read(west).region == config.read(east).region
    assert isinstance(config.read(west), config.Recipe)
    with pytest.raises(InputError):
        init("a", "0,84,10,89", SEASONS, out=tmp_path / "c.yaml", today=TODAY)
