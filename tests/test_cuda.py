"""What needs a CUDA device: skipped without one. Neither dask nor Zarr is asked for (a whole run: tests/test_gpu_workers.py).

Engines of training are compared generation by generation in test_ga.py and step by step in test_lm.py, on CUDA too.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from made_networks import TOLERANCE, Model, cnn, gabp, planes_of

from smscale.kernels import ga, lm, lm_network
from smscale.models import on_device
from smscale.models.cnn import CNNRegressor
from smscale.models.gabp import GABPRegressor

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

Made = Callable[..., tuple[Any, dict[str, np.ndarray]]]
both = pytest.mark.parametrize("made", [gabp, cnn])


@pytest.fixture(autouse=True)
def emptied() -> Iterator[None]:
    """A device and a process that hold nothing, and have said nothing."""
    on_device._HELD.clear()
    on_device._say.cache_clear()
    torch.cuda.empty_cache()
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def table(rows: int = 400) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 5))
    return x, 0.25 + 0.05 * np.tanh(2 * x[:, 0]) * x[:, 1] + 0.02 * x[:, 2] + 0.004 * rng.normal(size=rows)


# training


def test_genetic_search_reaches_what_the_cpus_engine_does_and_the_same_again() -> None:
    x, y = table()
    settings = ga.Settings(population=40, generations=80, max_hidden=6)
    target = (y - y.mean()) / y.std()
    here, *there = (
        ga.evolve(x, target, settings, np.random.default_rng(1), engine=engine, device=device)
        for engine, device in (("numba", None), ("torch", "cuda"), ("torch", "cuda"))
    )
    # Selection amplifies one rounding: early generations are the same, what is reached is about the same.
    np.testing.assert_allclose(there[0].trace.sse[:10], here.trace.sse[:10], rtol=1e-3)
    assert there[0].sse[0] == pytest.approx(here.sse[0], rel=0.3)
    np.testing.assert_array_equal(there[0].population, there[1].population)


def test_levenberg_marquardt_ends_where_the_cpus_engine_does() -> None:
    x, y = table()
    rng = np.random.default_rng(2)
    target = (y - y.mean()) / y.std()
    starts = np.array([rng.normal(0, 0.3, 4 * 7 + 1) for _ in range(6)])
    ends = []
    for where in ({"engine": "numpy"}, {"engine": "torch", "device": "cuda"}):
        problem = lm_network.networks(x, target, np.ones(len(y)), np.full(6, 4), 0.1, dtype="float64", **where)
        training = lm_network.begin(problem, starts, lm.Settings(max_steps=40), lm_network.Stop())
        while not lm_network.finished(training):
            training = lm_network.advance(problem, training, lm.Settings(max_steps=40), lm_network.Stop())
        ends.append(training.best_mse)
    np.testing.assert_allclose(ends[1], ends[0], rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gabp_trained_there_is_as_good_and_the_same_again(dtype: str) -> None:
    """Other draws would win selection after an ulp, so no more than the quality can be the same as on the CPU."""
    short = {"population": 20, "generations": 8, "members": 2, "repeats": 1, "restarts": 2, "max_steps": 30}
    here, *there = (
        GABPRegressor(**short, dtype=dtype, random_state=0, accelerator=where).fit(*table())
        for where in ("cpu", "cuda", "cuda")
    )
    assert there[0].inner_score_ == pytest.approx(here.inner_score_, rel=0.2)
    for name, values in there[0].network_.items():
        np.testing.assert_array_equal(values, there[1].network_[name])


def test_cnn_trained_there_is_that_of_the_cpu_and_the_same_again() -> None:
    short = {"epochs": 8, "filters": (4, 4, 4, 4), "dropout": 0.0, "learning_rate": 0.01, "members": 3}
    here, *there = (
        CNNRegressor(**short, random_state=0, accelerator=where).fit(*table(120)) for where in ("cpu", "cuda", "cuda")
    )
    # TF32 and other orders of sums, over a few epochs
    np.testing.assert_allclose(there[0].history_["validation_mse"], here.history_["validation_mse"], rtol=0.05)
    for name, values in there[0].arrays_.items():
        np.testing.assert_array_equal(values, there[1].arrays_[name])


# prediction


@both
@pytest.mark.parametrize("shape", [(5, 40, 61), (3, 700, 900)])
def test_maps_are_those_of_the_kernels_to_the_tolerance_and_the_same_again(
    made: Made, shape: tuple[int, int, int]
) -> None:
    """Also where the caller lets products be of TF32, which would lose half of the digits."""
    rng = np.random.default_rng(3)
    network, arrays = made(rng)
    planes = planes_of(rng, arrays, shape)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        found, again = (on_device.predict_planes(Model(network), planes, "cuda") for _ in range(2))
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_array_equal(found, again)
    np.testing.assert_allclose(found, Model(network).predict_planes(planes), rtol=0, atol=TOLERANCE)
    assert torch.cuda.memory_allocated() > 0, "the weights stay"


@both
def test_parts_of_any_size_agree(made: Made) -> None:
    rng = np.random.default_rng(4)
    network, arrays = made(rng)
    planes = planes_of(rng, arrays, (5, 40, 61))
    there = torch.device("cuda")
    forward = network.on_device(there)
    whole = on_device._predicted(forward, planes, there, on_device.MOST_CELLS)
    for cells in (61, 2440, 5000):
        found = on_device._predicted(forward, planes, there, cells)
        np.testing.assert_allclose(found, whole, rtol=0, atol=1e-6)


@both
def test_host_does_not_wait_while_a_part_is_calculated(made: Made) -> None:
    network, arrays = made(np.random.default_rng(5))
    rows = torch.randn((len(arrays["mean"]), 5000), device="cuda").T
    forward = network.on_device(torch.device("cuda"))
    forward(rows)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        forward(rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@both
def test_bytes_of_a_part_are_those_estimated(made: Made) -> None:
    """Beside what a library keeps for its work, some MiB on these devices."""
    rng = np.random.default_rng(6)
    network, arrays = made(rng)
    there = torch.device("cuda")
    forward, cells = network.on_device(there), 1 << 17
    planes = [rng.normal(mean, 1, (2, 256, 256)).astype(np.float32) for mean in arrays["mean"]]
    on_device._predicted(forward, planes, there, cells)
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    on_device._predicted(forward, planes, there, cells)
    each = forward.row_bytes + on_device.PLANE_BYTES * len(planes) + on_device.CELL_BYTES
    assert torch.cuda.max_memory_allocated() - held <= each * cells + (64 << 20)
    fitting = on_device._fitting(forward, len(planes), there)
    assert fitting & (fitting - 1) == 0
    assert fitting * each <= torch.cuda.mem_get_info()[0]


def limit(mebibytes: int) -> None:
    """What this process may take of the device: the driver goes on to say that all of it is free."""
    torch.cuda.set_per_process_memory_fraction((mebibytes << 20) / torch.cuda.get_device_properties(0).total_memory)


def test_a_full_device_gets_smaller_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(7)
    network, arrays = cnn(rng)
    planes = [rng.normal(mean, 1, (2, 512, 512)).astype(np.float32) for mean in arrays["mean"]]
    tried, original = [], on_device._predicted

    def counted(forward: Any, given: Any, device: torch.device, cells: int) -> np.ndarray:
        tried.append(cells)
        return original(forward, given, device, cells)

    monkeypatch.setattr(on_device, "_predicted", counted)
    limit(300)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = on_device.predict_planes(Model(network), planes, "cuda")
    assert tried[0] == on_device.MOST_CELLS
    assert len(tried) > 1
    assert all(after == before // 2 for before, after in pairwise(tried))
    np.testing.assert_allclose(found, Model(network).predict_planes(planes), rtol=0, atol=TOLERANCE)


def test_a_device_without_room_leaves_it_to_the_cpu_and_says_so_once() -> None:
    rng = np.random.default_rng(8)
    network, arrays = cnn(rng)
    planes = [rng.normal(mean, 1, (2, 256, 256)).astype(np.float32) for mean in arrays["mean"]]
    limit(1)
    with pytest.warns(RuntimeWarning, match="memory of cuda is too small or taken") as told:
        twice = [on_device.predict_planes(Model(network), planes, "cuda") for _ in range(2)]
    assert len(told) == 1
    np.testing.assert_array_equal(twice, [Model(network).predict_planes(planes)] * 2)
    torch.cuda.set_per_process_memory_fraction(1.0)
    found = on_device.predict_planes(Model(network), planes, "cuda")
    np.testing.assert_allclose(found, Model(network).predict_planes(planes), rtol=0, atol=TOLERANCE)
    assert on_device._HELD, "with room again, the device is used again"


def test_weights_are_released_when_replaced() -> None:
    rng = np.random.default_rng(9)
    held = []
    for fingerprint in "abc":
        network, arrays = cnn(rng)
        planes = planes_of(rng, arrays)
        on_device.predict_planes(Model(network, fingerprint), planes, "cuda")
        held.append(torch.cuda.memory_allocated())
    assert held[0] == held[1] == held[2]
