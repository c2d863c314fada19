"""Groups appear whole or not at all; shards are written whole."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from smscale import store
from smscale.errors import StoreError

SHAPE = (4, 30, 30)


@pytest.fixture
def template() -> xr.Dataset:
    return xr.Dataset(
        {
            "a": (("time", "lat", "lon"), store.empty(SHAPE, "float32")),
            "s": (("time", "lat", "lon"), store.empty(SHAPE, "uint32", 0)),
        },
        coords={
            "time": ("time", np.arange("2017-06-10", "2017-06-14", dtype="datetime64[D]").astype("datetime64[ns]")),
            "lat": ("lat", np.arange(30.0)[::-1]),
            "lon": ("lon", np.arange(30.0)),
            "overpass": ("time", ["AM", "PM", "AM", "PM"]),
        },
        attrs={"title": "made"},
    )


def make(url: Path, template: xr.Dataset, group: str = "fine/overpass") -> None:
    store.create(url, group, template, {"time": 1, "lat": 10, "lon": 10}, {"time": 4, "lat": 20, "lon": 20})


def test_unfinished_group_is_invisible_and_published_one_is_plain_zarr(tmp_path: Path, template: xr.Dataset) -> None:
    url = tmp_path / "cube.zarr"
    make(url, template)
    values = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    whole = (slice(0, 4), slice(0, 30), slice(0, 30))
    store.write(url, "fine/overpass", "a", whole, values)
    with pytest.raises(StoreError, match="not finished"):
        store.open_group(url, "fine/overpass")
    with pytest.raises((FileNotFoundError, KeyError)):
        xr.open_zarr(url, group="fine/overpass", consolidated=False)
    np.testing.assert_array_equal(store.open_group(url, "fine/overpass", unfinished=True)["a"], values)

    store.publish(url, "fine/overpass")
    plain = xr.open_zarr(url, group="fine/overpass", consolidated=False)
    np.testing.assert_array_equal(plain["a"], values)
    assert plain["s"].dtype == np.uint32
    assert list(plain["overpass"].values) == ["AM", "PM", "AM", "PM"]
    assert plain.attrs["title"] == "made"
    assert not list(url.rglob("unfinished.json"))
    array = zarr.open_array(url, path="fine/overpass/a", mode="r")
    assert (array.chunks, array.shards) == ((1, 10, 10), (4, 20, 20))


def test_array_added_later_leaves_finished_ones_alone(tmp_path: Path, template: xr.Dataset) -> None:
    url = tmp_path / "maps.zarr"
    make(url, template, "")
    store.publish(url, "")
    added = template[["a"]].rename(a="b")
    store.create(url, "", added, {"time": 1}, None)
    assert set(store.open_group(url, "").data_vars) == {"a", "s"}
    store.publish(url, "", ["b"])
    assert set(store.open_group(url, "").data_vars) == {"a", "s", "b"}


@pytest.mark.filterwarnings("ignore:Object at")
def test_created_again_is_unfinished_again(tmp_path: Path, template: xr.Dataset) -> None:
    url = tmp_path / "maps.zarr"
    make(url, template)
    store.publish(url, "fine/overpass")
    make(url, template)
    assert "a" not in xr.open_zarr(url, group="fine/overpass", consolidated=False).data_vars


def test_write_that_cuts_a_shard_is_refused(tmp_path: Path, template: xr.Dataset) -> None:
    make(tmp_path / "c.zarr", template)
    with pytest.raises(StoreError, match="multiples of its shard 20; got 0:10"):
        store.write(
            tmp_path / "c.zarr", "fine/overpass", "a", (slice(0, 4), slice(0, 10), slice(0, 20)), np.zeros((4, 10, 20))
        )


def test_absent_group_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="run the stage that makes it"):
        store.open_group(tmp_path / "none.zarr", "fine")


def test_same_values_give_the_same_bytes(tmp_path: Path, template: xr.Dataset) -> None:
    values = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    for name in ("one", "two"):
        make(tmp_path / name, template)
        store.write(tmp_path / name, "fine/overpass", "a", (slice(None),) * 3, values)
        store.publish(tmp_path / name, "fine/overpass")
    files = [
        {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        for root in (tmp_path / "one", tmp_path / "two")
    ]
    assert files[0] == files[1]
