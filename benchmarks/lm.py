"""One Levenberg-Marquardt step of a 12-20-1 network on 6 069 samples, against scipy and torch-levenberg-marquardt.

All on one thread (a worker has one). scipy is given the analytic Jacobian; its step is the time per Jacobian that it
asks for.
Run: python -m benchmarks lm
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import numpy as np
import scipy.optimize
from threadpoolctl import threadpool_limits

from benchmarks.ga import HIDDEN, PREDICTORS, SAMPLES, scene
from benchmarks.timing import medians, missing
from smscale.kernels import lm

STEPS = 5


def jacobian(parameters: np.ndarray, x: np.ndarray) -> np.ndarray:
    """(n, p), in the order of `lm.NetworkProblem`."""
    w1, b1, w2, _ = lm.split(parameters, x.shape[1])
    g = np.tanh(x @ w1 + b1)
    d = w2 * (1 - g**2)
    inputs = np.hstack([x, np.ones((len(x), 1))])
    neurons = np.concatenate([d[:, :, None] * inputs[:, None, :], g[:, :, None]], axis=2)
    return np.hstack([neurons.reshape(len(x), -1), np.ones((len(x), 1))])


def our_steps(problem: lm.NetworkProblem, start: np.ndarray) -> float:
    """Seconds a step."""
    begun = time.perf_counter()
    found = lm.run(problem, start, lm.Settings(max_steps=STEPS))
    return (time.perf_counter() - begun) / found.steps


def scipy_steps(x: np.ndarray, y: np.ndarray, start: np.ndarray) -> float:
    """Seconds a Jacobian."""
    asked = 0

    def counted(parameters: np.ndarray) -> np.ndarray:
        nonlocal asked
        asked += 1
        return jacobian(parameters, x)

    begun = time.perf_counter()
    scipy.optimize.least_squares(lambda t: lm.forward(t, x) - y, start, jac=counted, method="lm", max_nfev=STEPS)
    return (time.perf_counter() - begun) / max(asked, 1)


def torch_steps(x: np.ndarray, y: np.ndarray) -> float:
    """Seconds a step of torch-levenberg-marquardt, float32, its Cholesky solver."""
    import torch
    from torch_levenberg_marquardt.training import LevenbergMarquardtModule

    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = torch.nn.Sequential(torch.nn.Linear(PREDICTORS, HIDDEN), torch.nn.Tanh(), torch.nn.Linear(HIDDEN, 1))
    module: Any = LevenbergMarquardtModule(net, solve_method="cholesky")
    inputs, target = torch.from_numpy(x).float(), torch.from_numpy(y).float()[:, None]
    module.training_step(inputs, target)
    begun = time.perf_counter()
    for _ in range(STEPS):
        module.training_step(inputs, target)
    return (time.perf_counter() - begun) / STEPS


def main() -> None:
    """Print medians of seconds a step."""
    with threadpool_limits(1):
        rows, equations = measure()
    print(f"\nLM, one step of {PREDICTORS}-{HIDDEN}-1 on {SAMPLES} samples, one thread")
    print(f"  {'normal equations alone':34s} {equations * 1e3:8.1f} ms")
    for name, seconds in rows.items():
        print(f"  {name:34s} {seconds * 1e3:8.1f} ms   {seconds / rows['smscale']:6.2f} x")
    if missing("torch_levenberg_marquardt"):
        print("  not installed, so not measured: torch-levenberg-marquardt")


def measure() -> tuple[dict[str, float], float]:
    """Seconds a step of each, and of the normal equations alone."""
    x, y = scene()
    problem = lm.NetworkProblem(x, y, np.ones(SAMPLES), HIDDEN)
    start = 0.3 * np.random.default_rng(0).normal(size=HIDDEN * (PREDICTORS + 2) + 1)
    equations = medians({"equations": lambda: lm.normal_equations(problem, start)})["equations"]
    rows = {"smscale": median([our_steps(problem, start) for _ in range(3)]), "scipy lm": scipy_steps(x, y, start)}
    if not missing("torch_levenberg_marquardt"):
        rows["torch-levenberg-marquardt"] = median([torch_steps(x, y) for _ in range(3)])
    return rows, equations


if __name__ == "__main__":
    main()
