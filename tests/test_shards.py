"""Our shards against zarr-python's: what each writes, the other reads, and the same files are missing."""

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import ZstdCodec

from smscale import shards, store
from smscale.kernels.nans import one_nan


def made(path, shape, chunk, shard, dtype, fill):
    return zarr.create_array(
        path, shape=shape, chunks=chunk, shards=shard, dtype=dtype, fill_value=fill, compressors=(ZstdCodec(level=3),)
    )


@st.composite
def arrays(draw):
    """Values with holes, their shape, chunk, shard and type, and what fills the holes."""
    dtype, fill = draw(
        st.sampled_from([("f4", np.nan), ("u1", 255), ("u4", 0), ("u2", 65534), ("i8", -1), ("f8", 0.0)])
    )
    chunk = draw(st.tuples(*[st.integers(1, 4)] * 3))
    shard = tuple(c * draw(st.integers(1, 3)) for c in chunk)
    shape = tuple(draw(st.integers(1, 2 * s)) for s in shard)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    values = rng.integers(0, 200, shape).astype(dtype)
    values[rng.random(shape) < draw(st.sampled_from([0.0, 0.7, 1.0]))] = fill
    return values, shape, chunk, shard, dtype, fill


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_zarr_reads_what_we_encode(data, tmp_path_factory):
    values, shape, chunk, shard, dtype, fill = data.draw(arrays())
    folder = tmp_path_factory.mktemp("shards")
    ours, theirs = (made(folder / name, shape, chunk, shard, dtype, fill) for name in ("ours", "theirs"))
    level = shards.level_of(ours)
    assert level == 3
    store._write_shards(folder / "ours", ours, (slice(None),) * 3, values, level)
    theirs[...] = values
    np.testing.assert_array_equal(zarr.open_array(folder / "ours", mode="r")[...], values)
    files = [
        {str(p.relative_to(folder / n)) for p in (folder / n / "c").rglob("*") if p.is_file()}
        for n in ("ours", "theirs")
    ]
    assert files[0] == files[1]
    for name in files[0]:
        assert (folder / "ours" / name).stat().st_size == (folder / "theirs" / name).stat().st_size


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_we_read_what_zarr_writes(data, tmp_path_factory):
    values, shape, chunk, shard, dtype, fill = data.draw(arrays())
    folder = tmp_path_factory.mktemp("shards")
    theirs = made(folder / "theirs", shape, chunk, shard, dtype, fill)
    theirs[...] = values
    starts = [data.draw(st.integers(0, n - 1)) for n in shape]
    region = tuple(slice(a, data.draw(st.integers(a + 1, n))) for a, n in zip(starts, shape, strict=True))
    for part in (region, ()):
        window = shards.window_of(shape, part)
        found = shards.read(folder / "theirs", theirs, window)
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, values[part])


@pytest.mark.parametrize(
    "region", [(0, slice(None)), (slice(0, 4, 2), slice(None)), (slice(2, 2), slice(None)), (slice(1),)]
)
def test_other_regions_are_left_to_zarr(region):
    assert shards.window_of((4, 4), region) is None


@pytest.mark.parametrize("keep", [3, 40, -1])
def test_a_damaged_shard_is_refused(tmp_path, keep):
    array = made(tmp_path / "a", (4, 4), (2, 2), (4, 4), "f4", np.nan)
    array[...] = np.random.default_rng(0).normal(size=(4, 4))
    file = tmp_path / "a" / "c" / "0" / "0"
    content = bytearray(file.read_bytes())
    content = content[:keep] if keep > 0 else content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]
    file.write_bytes(bytes(content))
    with pytest.raises((ValueError, RuntimeError)):
        shards.read(tmp_path / "a", array, ((0, 4), (0, 4)))
    with pytest.raises(Exception, match=r"."):
        _ = array[...]


def test_a_shard_that_becomes_empty_is_removed(tmp_path):
    array = made(tmp_path / "a", (4, 4), (2, 2), (4, 4), "f4", np.nan)
    whole = (slice(None), slice(None))
    store._write_shards(tmp_path / "a", array, whole, np.ones((4, 4), np.float32), 3)
    assert (tmp_path / "a" / "c" / "0" / "0").is_file()
    store._write_shards(tmp_path / "a", array, whole, np.full((4, 4), np.nan, np.float32), 3)
    assert not (tmp_path / "a" / "c" / "0" / "0").exists()


def test_other_layouts_are_left_to_zarr(tmp_path):
    plain = zarr.create_array(tmp_path / "p", shape=(4,), chunks=(2,), dtype="f4")
    assert shards.level_of(plain) is None
    other = zarr.create_array(tmp_path / "o", shape=(4,), chunks=(2,), shards=(4,), dtype="f4", compressors=None)
    assert shards.level_of(other) is None
    big = zarr.create_array(tmp_path / "b", shape=(4,), chunks=(2,), shards=(4,), dtype=">f4")
    assert shards.level_of(big) is None


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_nan_gets_the_same_bits(dtype):
    values = np.array([1.0, np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0], dtype)
    values[2] = np.copysign(dtype(np.nan), dtype(-1))
    clean = one_nan(values)
    np.testing.assert_array_equal(clean, values)
    assert len({clean[i].tobytes() for i in (1, 2)}) == 1
    assert clean[6].tobytes() == values[6].tobytes(), "a negative zero is no NaN"
    assert one_nan(clean) is clean
