"""Models on a torch device: the kernels' values to the stated tolerance, in parts that memory holds. Here the device is torch's CPU."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from made_networks import TOLERANCE, Model, cnn, gabp, planes_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from smscale.models import on_device
from smscale.models.on_device import LEAST_CELLS, MOST_CELLS

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
#: Of float32: half the distance from 1 to the next.
ROUNDING = 2.0**-24


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    """What a process keeps and has said is forgotten between tests."""
    on_device._HELD.clear()
    on_device._say.cache_clear()
    yield
    on_device._HELD.clear()
    on_device._say.cache_clear()


@pytest.fixture
def stood_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's CPU stands in for the GPU."""
    monkeypatch.setattr(on_device, "placed", lambda device: CPU)


def on_torch(model: Any, planes: list[np.ndarray], cells: int = MOST_CELLS) -> np.ndarray:
    return on_device._predicted(model.on_device(CPU), planes, CPU, cells)


# values


@pytest.mark.parametrize("weight", [0.3, 1.0, 3.0, 10.0])
def test_gabp_on_torch_is_the_kernels_to_the_tolerance(weight: float) -> None:
    """Weights of standardised predictors: as trained they are below 1; by 10 nearly all neurons are saturated."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        network, arrays = gabp(rng, weight)
        planes = planes_of(rng, arrays)
        expected, found = network.predict_planes(planes), on_torch(network, planes)
        np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
        assert 0.2 < np.isnan(found).mean() < 0.9
        assert np.nanstd(found) > 1e3 * TOLERANCE


@pytest.mark.parametrize("weight", [100.0, 1e4])
def test_hostile_network_is_the_same_as_far_as_float32_reaches(weight: float) -> None:
    """Sums of terms so large lose more than the tolerance, in any order: the bound is of two sums of k + 2 float32 terms."""
    rng = np.random.default_rng(1)
    network, arrays = gabp(rng, weight)
    planes = planes_of(rng, arrays)
    expected, found = network.predict_planes(planes), on_torch(network, planes)
    k, reach = len(planes), 2.5
    of_neuron = 4 * (k + 2) * ROUNDING * (np.abs(arrays["b1"]) + reach * np.abs(arrays["w1"]).sum(0))
    outer = np.abs(network.w2)
    bound = outer @ np.minimum(2, of_neuron + 1e-6) + 4 * (k + len(outer)) * ROUNDING * (outer.sum() + 1)
    assert np.nanmax(np.abs(found - expected)) <= bound


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cells": 9, "members": 2},
        {"filters": (16, 16, 32, 32), "members": 1},
        {"predictors": 5, "filters": (6, 5, 7, 3), "members": 3},
        {"predictors": 1, "members": 1},
    ],
)
def test_cnn_on_torch_is_the_kernels_to_the_tolerance(options: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    network, arrays = cnn(rng, **options)
    planes = planes_of(rng, arrays) if len(arrays["mean"]) > 2 else [rng.normal(0, 9, (4, 30, 50)).astype(np.float32)]
    expected, found = Model(network).predict_planes(planes), on_torch(network, planes)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    assert np.nanstd(found) > 1e2 * TOLERANCE


def test_cnn_says_nothing_where_float32_does_not_reach() -> None:
    rng = np.random.default_rng(4)
    network, arrays = cnn(rng, clip=np.finfo(np.float64).max)
    planes = planes_of(rng, arrays)
    planes[5] = planes[5].copy()
    planes[5][2] = 3e38
    expected, found = Model(network).predict_planes(planes), on_torch(network, planes)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    assert np.isnan(found[2]).all()
    assert not np.isnan(found[3]).all()


@pytest.mark.parametrize("cells", [7, 500, 2440, 5000])
def test_parts_of_any_size_give_the_same_map(cells: int) -> None:
    rng = np.random.default_rng(5)
    network, arrays = gabp(rng)
    planes = planes_of(rng, arrays, (3, 5, 31) if cells < 100 else (5, 40, 61))
    whole = on_torch(network, planes)
    np.testing.assert_allclose(on_torch(network, planes, cells), whole, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(on_torch(network, planes, cells), on_torch(network, planes, cells))


def test_planes_may_be_scalars_repeated_or_without_any_cell_that_is_known() -> None:
    rng = np.random.default_rng(6)
    network, arrays = gabp(rng)
    planes = [np.float32(mean) for mean in arrays["mean"]]
    np.testing.assert_allclose(on_torch(network, planes), network.predict_planes(planes), atol=TOLERANCE)
    wide = [np.broadcast_to(plane, (4, 5)) for plane in planes]
    np.testing.assert_allclose(on_torch(network, wide), network.predict_planes(wide), atol=TOLERANCE)
    assert np.isnan(on_torch(network, [np.full((4, 5), np.nan, np.float32), *wide[1:]])).all()
    empty = [np.empty((0, 5), np.float32), *planes[1:]]
    assert on_torch(network, empty).shape == (0, 5)


def test_what_repeats_travels_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A static plane is brought for the first step alone, and only as large as it is."""
    rng = np.random.default_rng(7)
    network, arrays = gabp(rng)
    planes = planes_of(rng, arrays)
    forward, sent = network.on_device(CPU), []
    original = torch.tensor

    def counted(values: Any, **how: Any) -> torch.Tensor:
        sent.append(np.size(values))
        return original(values, **how)

    monkeypatch.setattr(torch, "tensor", counted)
    on_device._predicted(forward, planes, CPU, 20 * 31)
    assert sum(sent) == sum(plane.size for plane in planes)


def test_products_are_of_full_float32_and_the_callers_choice_stands_after() -> None:
    seen = []

    class Asked:
        row_bytes = 4

        def __call__(self, rows: torch.Tensor) -> torch.Tensor:
            seen.append((torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32))
            return rows[:, 0]

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        on_device._predicted(Asked(), [np.ones((2, 3), np.float32)], CPU, MOST_CELLS)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == [("highest", False)]


@pytest.mark.parametrize("made", [gabp, cnn])
def test_forward_reads_nothing_back(made: Any) -> None:
    """On torch's device without values any look at one fails: the host would wait for it."""
    network, arrays = made(np.random.default_rng(8))
    rows = torch.empty((len(arrays["mean"]), 50), device="meta").T
    found = network.on_device(torch.device("meta"))(rows)
    assert found.shape == (50,)
    assert found.dtype == torch.float32


# memory


class Peak(TorchDispatchMode):
    """Bytes of the tensors that live at once, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage())._cdata not in self.known:
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.now)
        return out

    def gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


@pytest.mark.parametrize(
    ("made", "options"),
    [
        (gabp, {}),
        (cnn, {}),
        (cnn, {"cells": 9, "members": 2}),
        (cnn, {"filters": (16, 16, 32, 32), "members": 1}),
        (cnn, {"predictors": 5, "filters": (32, 6, 8, 64), "members": 2}),
    ],
)
def test_bytes_of_a_cell_are_those_that_live_at_once(made: Any, options: dict[str, Any]) -> None:
    """All cells known and no plane repeated: the worst. An estimate far too high would waste the device."""
    rng = np.random.default_rng(9)
    network, arrays = made(rng, **options)
    forward, cells = network.on_device(CPU), 20 * 25
    planes = [rng.normal(mean, 1, (2, 20, 25)).astype(np.float32) for mean in arrays["mean"]]
    with Peak() as peak:
        on_device._predicted(forward, planes, CPU, cells)
    most = forward.row_bytes + on_device.PLANE_BYTES * len(planes) + on_device.CELL_BYTES
    assert 0.7 * most < peak.most / cells <= most


def test_cells_are_a_power_of_two_of_what_half_the_free_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = cnn(np.random.default_rng(10))[0].on_device(CPU)
    each = forward.row_bytes + on_device.PLANE_BYTES * 12 + on_device.CELL_BYTES
    facts = {"free": 0, "reserved": 0, "allocated": 0}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (facts["free"], 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: facts["reserved"])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: facts["allocated"])
    for free, expected in ((0, 1), (2 * 5000 * each, 4096), (2 * 70_000 * each, 65_536), (60 << 30, MOST_CELLS)):
        facts["free"] = free
        assert on_device._fitting(forward, 12, CUDA) == expected
    facts |= {"free": 0, "reserved": 2 * 9000 * each, "allocated": 2 * 500 * each}
    assert on_device._fitting(forward, 12, CUDA) == 8192, "what torch keeps for use again is free to us"


class Full:
    """A device that holds so many rows at most."""

    row_bytes = 8

    def __init__(self, most: int, message: str | None = None):
        self.most, self.message = most, message
        self.asked: list[int] = []

    def on_device(self, device: torch.device) -> Full:
        return self

    def predict_planes(self, planes: list[np.ndarray]) -> np.ndarray:
        return np.asarray(planes[0] + 1)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        self.asked.append(len(rows))
        if len(rows) > self.most:
            raise RuntimeError(self.message) if self.message else torch.OutOfMemoryError("CUDA out of memory.")
        return rows[:, 0] + 2


@pytest.mark.parametrize(
    "message", [None, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"]
)
def test_a_full_device_gets_half_the_cells(stood_in: None, message: str | None) -> None:
    model = Full(70_000, message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = on_device.predict_planes(Model(model), [np.zeros((300, 1000), np.float32)], "cuda")
    assert (found == 2).all()
    assert model.asked == [262_000, 131_000] + [65_000] * 4 + [40_000]


def test_what_finds_no_room_is_predicted_on_the_cpu_and_told_once(stood_in: None) -> None:
    model = Full(LEAST_CELLS // 2)
    planes = [np.zeros((300, 1000), np.float32)]
    with pytest.warns(RuntimeWarning, match="memory of cuda is too small or taken") as told:
        twice = [on_device.predict_planes(Model(model), planes, "cuda") for _ in range(2)]
    assert len(told) == 1
    assert (np.array(twice) == 1).all()
    assert min(model.asked) >= 4000


def test_too_little_memory_is_not_even_tried(stood_in: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Full(1 << 30)
    monkeypatch.setattr(on_device, "_fitting", lambda *given: LEAST_CELLS // 2)
    with pytest.warns(RuntimeWarning, match="too small or taken"):
        assert (on_device.predict_planes(Model(model), [np.zeros((3, 4), np.float32)], "cuda") == 1).all()
    assert not model.asked


def test_other_errors_of_a_device_are_raised_for_the_engine(stood_in: None) -> None:
    with pytest.raises(RuntimeError, match="illegal memory access"):
        on_device.predict_planes(
            Model(Full(0, "CUDA error: an illegal memory access")), [np.zeros(5, np.float32)], "cuda"
        )


# models


def test_torch_that_sees_no_gpu_leaves_it_to_the_cpu_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rng = np.random.default_rng(11)
    network, arrays = gabp(rng)
    planes = planes_of(rng, arrays)
    with pytest.warns(RuntimeWarning, match="declares a GPU, but torch .* sees none") as told:
        twice = [on_device.predict_planes(Model(network), planes, "cuda") for _ in range(2)]
    assert len(told) == 1
    np.testing.assert_array_equal(twice, [network.predict_planes(planes)] * 2)


def test_weights_are_moved_once_and_released_when_replaced(stood_in: None, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(12)
    network, arrays = gabp(rng)
    other, _ = cnn(rng)
    planes = planes_of(rng, arrays)
    for _ in range(3):
        on_device.predict_planes(Model(network, "one", "gabp"), planes, "cuda")
        on_device.predict_planes(Model(other, "two", "cnn"), planes, "cuda")
    first, second = (weakref.ref(held.forward) for held in on_device._HELD.values())
    on_device.predict_planes(Model(network, "one", "gabp"), planes, "cuda")
    assert [held.forward for held in on_device._HELD.values()] == [first(), second()]
    trained_again = gabp(rng)[0]
    found = on_device.predict_planes(Model(trained_again, "three", "gabp"), planes, "cuda")
    assert first() is None
    assert second() is not None
    np.testing.assert_allclose(found, trained_again.predict_planes(planes), atol=TOLERANCE)
    assert len(on_device._HELD) == 2


def test_models_without_a_forward_of_their_own_stay_on_the_cpu() -> None:
    class Trees:
        def predict_planes(self, planes: list[np.ndarray]) -> np.ndarray:
            return planes[0] * 3

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = on_device.predict_planes(Model(Trees()), [np.ones((2, 2), np.float32)], "cuda")
    assert (found == 3).all()
