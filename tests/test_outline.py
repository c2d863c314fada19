"""Outlines mask cells by their centres, on either kind of grid."""

import json
from pathlib import Path

import numpy as np
import pytest

from smscale.errors import InputError
from smscale.grid import Grid
from smscale.sources import outline

TRIANGLE = {"type": "Polygon", "coordinates": [[[101.0, 30.0], [103.0, 30.0], [101.0, 32.0], [101.0, 30.0]]]}


@pytest.fixture
def triangle(tmp_path: Path) -> Path:
    path = tmp_path / "outline.geojson"
    feature = {"type": "Feature", "properties": {}, "geometry": TRIANGLE}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    return path


def test_bounds_of_an_outline(triangle: Path) -> None:
    assert outline.bounds(outline.read_outline(triangle)) == (101.0, 30.0, 103.0, 32.0)


def test_cells_below_the_diagonal_are_inside(triangle: Path) -> None:
    grid = Grid.latlon(101, 30, 103, 32, step=0.1)
    expected = (grid.lon[None, :] - 101) + (grid.lat[:, None] - 30) < 2 - 1e-9
    on_edge = np.isclose((grid.lon[None, :] - 101) + (grid.lat[:, None] - 30), 2)
    found = outline.inside(outline.read_outline(triangle), grid)
    np.testing.assert_array_equal(found | on_edge, expected | on_edge)


def test_ease_cells_are_judged_in_their_projection(triangle: Path) -> None:
    grid = Grid.ease2(9, 101, 30, 103, 32)
    found = outline.inside(outline.read_outline(triangle), grid)
    west_south, east_north = grid.index(101.1, 30.1), grid.index(102.9, 31.9)
    assert found[west_south]
    assert not found[east_north]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "is no GeoJSON"),
        ("[]", "holds no Polygon"),
        ('{"type": "Point", "coordinates": [1, 2]}', "holds no Polygon"),
    ],
)
def test_wrong_outline_is_named(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "bad.geojson"
    path.write_text(text)
    with pytest.raises(InputError, match=expected):
        outline.read_outline(path)
