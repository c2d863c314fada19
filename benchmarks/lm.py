"""Levenberg-Marquardt of a 12-20-1 network on 6 069 samples, against scipy, torch-levenberg-marquardt and Adam.

One step: all on one thread (a worker has one), from one start, runs in turns; scipy has the analytic Jacobian. Then 20
restarts in one batch against single runs of as many steps, problem and all, and the time to a mean squared error of 0.001
(m3/m3)^2 against torch's Adam at several learning rates, full batch and minibatch: one thread each, processor time.
Peer: torch-levenberg-marquardt (`pip install torch-levenberg-marquardt`).
Run: python -m benchmarks lm
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import scipy.optimize
from threadpoolctl import threadpool_limits

from benchmarks.ga import HIDDEN, PREDICTORS, SAMPLES, scene
from benchmarks.timing import medians, missing
from smscale.kernels import lm, lm_network
from smscale.kernels.ga import cpus
from smscale.kernels.lm_network import Stop

STEPS, RESTARTS, REPEATS = 5, 20, 5
SOLVE_METHODS = ("cholesky", "solve")
#: (m3/m3)^2, the paper's goal; the noise of a satellite's soil moisture, m3/m3, which no network can learn.
GOAL, NOISE = 0.001, 0.03
LEARNING_RATES, BATCHES = (0.003, 0.01, 0.03), (None, 256)
#: Seconds after which Adam is given up.
PATIENCE = 10.0


def starts(count: int, seed: int = 1) -> np.ndarray:
    """(count, p) networks whose activations begin within tanh's bend."""
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(count, PREDICTORS, HIDDEN)) / np.sqrt(PREDICTORS)
    threshold, output = 0.5 * rng.normal(size=(count, HIDDEN)), 0.3 * rng.normal(size=(count, HIDDEN))
    return np.stack([lm_network.join(*layers, 0.0) for layers in zip(first, threshold, output, strict=True)])


def soil_moisture() -> tuple[np.ndarray, np.ndarray]:
    """Standardised predictors that depend on one another as the paper's do, and soil moisture with noise, m3/m3."""
    rng = np.random.default_rng(0)
    lon, lat, day, aspect = rng.uniform(-1, 1, (4, SAMPLES))
    draw = rng.normal(size=(8, SAMPLES))
    overpass = rng.integers(0, 2, SAMPLES).astype(float)
    elevation = np.tanh(1.5 * np.sin(2.2 * lon) + 1.1 * np.cos(2.7 * lat)) + 0.2 * draw[0]
    slope = np.abs(elevation + 0.5 * draw[1]) ** 0.7
    season = np.sin(np.pi * day)
    green = 0.6 * season - 0.5 * elevation + 0.3 * draw[2]
    ndvi = np.tanh(green) + 0.05 * draw[3]
    evi = 0.6 * ndvi + 0.08 * draw[4]
    lst = 0.9 * season - 0.8 * elevation - 0.5 * overpass - 0.4 * green + 0.2 * draw[5]
    et = np.exp(0.5 * green + 0.3 * season) + 0.1 * draw[6]
    cover = np.digitize(green, [-0.8, -0.3, 0.2, 0.7]).astype(float)
    dryness = lst + 0.4 * ndvi + 0.8 * elevation
    wet = -1.2 * dryness * (1 + 0.5 * ndvi) + 0.8 * np.sin(3 * lat + lon) + 0.6 * season * lon
    wet += 0.5 * et - 0.8 * slope * np.cos(np.pi * aspect)
    x = np.stack([lon, lat, elevation, slope, aspect, cover, lst, ndvi, evi, et, day, overpass], axis=1)
    return (x - x.mean(axis=0)) / x.std(axis=0), 0.05 + 0.45 / (1 + np.exp(-wet)) + NOISE * draw[7]


def jacobian(parameters: np.ndarray, x: np.ndarray) -> np.ndarray:
    """(n, p), in the order of `lm_network`."""
    w1, b1, w2, _, _ = lm_network.split(parameters, x.shape[1])
    g = np.tanh(x @ w1 + b1)
    d = w2 * (1 - g**2)
    inputs = np.hstack([x, np.ones((len(x), 1))])
    neurons = np.concatenate([d[:, :, None] * inputs[:, None, :], g[:, :, None]], axis=2)
    return np.hstack([neurons.reshape(len(x), -1), np.ones((len(x), 1))])


def our_run(problem: Any, start: np.ndarray) -> Callable[[], object]:
    """`STEPS` accepted steps of every network."""
    return lambda: lm.run(problem, start, lm.Settings(max_steps=STEPS))


def scipy_run(x: np.ndarray, y: np.ndarray, start: np.ndarray) -> Callable[[], object]:
    """As many evaluations; MINPACK asks for a Jacobian after each that succeeds."""

    def run() -> object:
        residual = lambda t: lm_network.forward(t, x) - y  # noqa: E731
        return scipy.optimize.least_squares(
            residual, start, jac=lambda t: jacobian(t, x), method="lm", max_nfev=STEPS + 1
        )

    return run


def perceptron(start: np.ndarray) -> Any:
    """The same network in torch, float32."""
    import torch

    w1, b1, w2, b2, _ = lm_network.split(start, PREDICTORS)
    net = torch.nn.Sequential(torch.nn.Linear(PREDICTORS, HIDDEN), torch.nn.Tanh(), torch.nn.Linear(HIDDEN, 1))
    with torch.no_grad():
        for parameter, values in zip(net.parameters(), (w1.T, b1, w2[None], [b2]), strict=True):
            parameter.copy_(torch.tensor(np.asarray(values)))
    return net


def torch_run(x: np.ndarray, y: np.ndarray, start: np.ndarray, method: str) -> Callable[[], object]:
    """As many of torch-levenberg-marquardt's steps, float32."""
    import torch
    from torch_levenberg_marquardt.training import LevenbergMarquardtModule

    inputs, target = torch.from_numpy(x).float(), torch.from_numpy(y).float()[:, None]

    def run() -> None:
        module: Any = LevenbergMarquardtModule(perceptron(start), solve_method=method)
        for _ in range(STEPS):
            module.training_step(inputs, target)

    return run


def step_times() -> dict[str, float]:
    """Seconds a step of each, one thread, in turns."""
    x, y = scene()
    start = starts(1)
    runs = {
        f"smscale, {dtype}": our_run(lm_network.networks(x, y, 1.0, [HIDDEN], dtype=dtype, threads=1), start)
        for dtype in lm_network.DTYPES
    }
    if not missing("torch_levenberg_marquardt"):
        for method in SOLVE_METHODS:
            runs[f"torch-levenberg-marquardt, {method}"] = torch_run(x, y, start[0], method)
    runs["scipy lm"] = scipy_run(x, y, start[0])
    return {name: seconds / STEPS for name, seconds in medians(runs, REPEATS).items()}


def batch_times(**engine: Any) -> tuple[float, float]:
    """Seconds of `RESTARTS` networks in one batch, and of a single run (mean over some of the same starts)."""
    x, y = scene()
    start = starts(RESTARTS)

    def run(chosen: np.ndarray) -> None:
        our_run(lm_network.networks(x, y, 1.0, [HIDDEN] * len(chosen), **engine), chosen)()

    def one_by_one() -> None:
        for i in range(0, RESTARTS, 5):
            run(start[i : i + 1])

    found = medians({"batch": lambda: run(start), "singles": one_by_one}, REPEATS)
    return found["batch"], found["singles"] / len(range(0, RESTARTS, 5))


def our_training(x: np.ndarray, y: np.ndarray, variance: float) -> tuple[float, int]:
    """Seconds of one thread to the goal, problem and all, and steps: medians over five starts."""
    settings, stop = lm.Settings(damping=1.0), Stop(goal=GOAL / variance)
    seconds, steps = [], []
    for start in starts(REPEATS):
        begun = time.process_time()
        problem = lm_network.networks(x, y, 1.0, [HIDDEN], threads=1)
        found = lm_network.train(problem, start[None], settings, stop)
        seconds.append(time.process_time() - begun if lm_network.reasons(found) == ["goal"] else np.inf)
        steps.append(int(found.state.steps[0]))
    return median(seconds), int(median(steps))


def adam_training(x: np.ndarray, y: np.ndarray, variance: float, rate: float, size: int | None) -> float:
    """Seconds of one thread to the goal of Adam, which looks once an epoch; infinite beyond `PATIENCE`. Median of three starts."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    inputs, target = torch.from_numpy(x).float(), torch.from_numpy(y).float()[:, None]
    seconds = []
    for start in starts(3):
        net = perceptron(start)
        optimizer = torch.optim.Adam(net.parameters(), rate)
        begun, error = time.process_time(), np.inf
        while error > GOAL / variance and time.process_time() - begun < PATIENCE:
            for rows in torch.randperm(SAMPLES).split(size) if size else [slice(None)]:
                optimizer.zero_grad()
                ((net(inputs[rows]) - target[rows]) ** 2).mean().backward()
                optimizer.step()
            with torch.no_grad():
                error = float(((net(inputs) - target) ** 2).mean())
        seconds.append(time.process_time() - begun if error <= GOAL / variance else np.inf)
    return median(seconds)


def report_steps() -> None:
    print(f"\nLM, one step of {PREDICTORS}-{HIDDEN}-1 on {SAMPLES} samples, one thread")
    import torch

    torch.set_num_threads(1)
    with threadpool_limits(1):
        rows = step_times()
    torch.set_num_threads(cpus())
    ours = rows["smscale, float32"]
    for name, seconds in rows.items():
        print(f"  {name:38s} {seconds * 1e3:8.1f} ms   {seconds / ours:6.2f} x")
    if missing("torch_levenberg_marquardt"):
        print("  not installed, so not measured: torch-levenberg-marquardt")


def report_batches() -> None:
    import torch

    print(f"\n{RESTARTS} restarts in one batch, {STEPS} steps each")
    engines: dict[str, dict[str, Any]] = {f"{cpus()} CPUs, {d}": {"dtype": d} for d in lm_network.DTYPES}
    engines["one thread, float32"] = {"threads": 1}
    if torch.cuda.is_available():
        for dtype in lm_network.DTYPES:
            engines[f"{torch.cuda.get_device_name()}, {dtype}"] = {"engine": "torch", "device": "cuda", "dtype": dtype}
    for name, engine in engines.items():
        batch, single = batch_times(**engine)
        print(f"  {name:38s} {batch:8.3f} s    {batch / single:6.2f} single runs ({single * 1e3:.1f} ms each)")
    if not torch.cuda.is_available():
        print("  no GPU: not measured")


def report_goal() -> None:
    x, moisture = soil_moisture()
    y, variance = (moisture - moisture.mean()) / moisture.std(), float(moisture.var())
    seconds, steps = our_training(x, y, variance)
    print(f"\nTo a mean squared error of {GOAL} (m3/m3)^2; noise alone is {NOISE**2:.4f}; one thread")
    print(f"  {'smscale, ' + str(steps) + ' steps':38s} {seconds:8.3f} s")
    found = {(rate, size): adam_training(x, y, variance, rate, size) for rate in LEARNING_RATES for size in BATCHES}
    for (rate, size), taken in found.items():
        name = f"Adam {rate}, {'full batch' if size is None else f'batches of {size}'}"
        print(f"  {name:38s} {taken:8.3f} s    {taken / seconds:6.2f} x")
    print(f"  best of Adam: {min(found.values()) / seconds:.1f} x ours")


def main() -> None:
    """Print medians."""
    report_steps()
    report_batches()
    report_goal()


if __name__ == "__main__":
    main()
