"""Compiled afresh or loaded from numba's cache, a kernel gives the same bytes: a restarted run must end as an undisturbed one."""

import json
import os
import subprocess
import sys

import pytest

#: Runs every kernel of the mapping that it is given, each with numbers of its own; one process, for imports take longest.
RUNNER = """
import hashlib, json, sys, numpy as np
for name, code in json.load(sys.stdin).items():
    def say(*arrays):
        print(name, hashlib.md5(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest(), flush=True)
    rng = np.random.default_rng(0)
    exec(code, {"np": np, "rng": rng, "x": rng.normal(size=(5000, 12)).astype(np.float32), "say": say})
"""
KERNELS = {
    "mlp": "from smscale.kernels import mlp\nw1 = rng.normal(size=(12, 9)).astype(np.float32); b = rng.normal(size=9).astype(np.float32)\n"
    "say(mlp.predict(x, w1, b, b, np.float32(0.1)), mlp.predict(x, w1, b, b, 0.1, linear=w1[:, 0], lower=-w1[:, 1] ** 2 - 1))",
    "ga": "from smscale.kernels import ga\ny = np.tanh(x[:, 0]) + x[:, 1] ** 2\n"
    "r = ga.evolve(x, y.astype(np.float32), ga.Settings(population=20, generations=5), np.random.default_rng(1))\n"
    "say(r.population, r.sse)",
    "lm": "from smscale.kernels import lm, lm_network as net\np = net.networks(x, np.tanh(x[:, 0]), 1.0, [5, 9])\n"
    "start = rng.normal(size=(2, p.table.parameters))\nsay(net.train(p, start, lm.Settings(max_steps=5)).best)",
    "cnn": "from smscale.models.cnn import cnn_from_arrays\nd = (1, 4, 5, 4, 3, 4, 4, 4, 6)\n"
    "a = {f'weight_{i}': rng.normal(size=(2, d[i + 1], d[i], 3)) / 2 for i in range(8)}\n"
    "a |= {f'bias_{i}': rng.normal(size=(2, d[i + 1])) for i in range(8)} | {'dense_bias': np.ones(1)}\n"
    "a |= {'dense_weight': rng.normal(size=(2, 6)), 'target': np.array([0.3, 0.1]), 'linear': rng.normal(size=12)}\n"
    "a |= {'mean': np.zeros(12), 'scale': np.ones(12), 'low': np.full(12, -2.5), 'high': np.full(12, 2.5)}\n"
    "m = cnn_from_arrays(a)\nr = m.predict(x)\nassert np.ptp(r) > 0\nsay(r, m.predict(x.astype(float)))",
    "closure": "from smscale.fusion import closure as c\nfrom smscale.fusion import closure_sums as k\nfrom smscale.grid import Grid\nf = Grid.latlon(100, 30, 102, 32)\n"
    "e = Grid.ease2(36, *f.bounds)\nz = rng.normal(0.3, 0.05, (2, *f.shape)).astype(np.float32)\n"
    "s = k.merge([k.block_sums(z, f, e)], e)\nr = c.solve(s, s.mean() + 0.02, e)\n"
    "say(s.values, r.coefficients, *r.apply(z, f)[:2])",
    "correction": "from smscale.kernels import correction as c\nz = x[:, :8].reshape(4, 100, 100)\nm = np.full(4, 256, np.uint32)\n"
    "say(*c.correct(z, z[::-1].copy(), m, 0.02, (0.0, 0.6)), *c.correct(z, z[::-1].copy(), m, None, (0.0, 0.6)))",
    "terrain": "from smscale.kernels.terrain import slope_aspect\nz = np.cumsum(rng.normal(size=(300, 300)), 0).astype(np.float32)\n"
    "say(*slope_aspect(z, 30.0, 30.0))",
    "overlap": "from smscale.features.upscale import upscale\nfrom smscale.grid import Grid, coords_of\nimport xarray as xr\n"
    "f = Grid.latlon(100, 30, 102, 32, step=0.01)\nz = rng.normal(size=f.shape).astype(np.float32)\n"
    "say(upscale(xr.DataArray(z, coords_of(f), ('lat', 'lon'), 'lst'), Grid.ease2(36, 100, 30, 102, 32)).values)",
    "noise": "from smscale.kernels import noise\nu = rng.normal(size=(200, 200)) * 9\nsay(noise.fbm(u, u.T, 7, 5, 0.6))",
    "idw": "from smscale.fusion.interpolators import InverseDistance\nc = rng.uniform(100, 101, (40, 2)); c[:, 1] -= 70\n"
    "i = InverseDistance().fit(c, rng.normal(size=(40, 6)))\nsay(i.predict_grid(np.linspace(100, 101, 80), np.linspace(31, 30, 80)))",
    "forest_tiles": "from sklearn.ensemble import RandomForestRegressor\nfrom smscale.models.forests import rf_from_arrays, rf_to_arrays\n"
    "m = RandomForestRegressor(5, random_state=0).fit(x[:500], x[:500, 0])\n"
    "say(rf_from_arrays(*rf_to_arrays(m)).predict_planes([p.reshape(2, 50, 50) for p in x.T]))",
    "forest": "from sklearn.ensemble import RandomForestRegressor\nfrom smscale.models.forests import rf_from_arrays, rf_to_arrays\n"
    "m = RandomForestRegressor(5, random_state=0).fit(x[:500], x[:500, 0])\nsay(rf_from_arrays(*rf_to_arrays(m)).predict(x))",
}


@pytest.fixture(scope="module")
def cold_and_warm(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What each kernel gave, compiled and then loaded: name -> hash."""
    cache = tmp_path_factory.mktemp("cache")
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUNNER]
    found = []
    for _ in range(2):
        run = subprocess.run(command, input=json.dumps(KERNELS), env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-2000:]
        found.append(dict(line.split() for line in run.stdout.splitlines()))
    return found


@pytest.mark.parametrize("kernel", KERNELS)
def test_cold_and_warm_cache_give_the_same_bytes(kernel: str, cold_and_warm: list[dict[str, str]]) -> None:
    cold, warm = cold_and_warm
    assert cold[kernel] == warm[kernel]
    assert len(cold[kernel]) == 32
