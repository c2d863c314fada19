"""Compiled afresh or loaded from numba's cache, a kernel gives the same bytes: a restarted run must end as an undisturbed one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MADE = """
import hashlib, numpy as np
rng = np.random.default_rng(0)
x = rng.normal(size=(5000, 12)).astype(np.float32)
def say(*arrays):
    print(hashlib.md5(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest())
"""
KERNELS = {
    "mlp": "from smscale.kernels import mlp\nw1 = rng.normal(size=(12, 9)).astype(np.float32); b = rng.normal(size=9).astype(np.float32)\n"
    "say(mlp.predict(x, w1, b, b, np.float32(0.1)), mlp.predict(x, w1, b, b, 0.1, linear=w1[:, 0], lower=-w1[:, 1] ** 2 - 1))",
    "ga": "from smscale.kernels import ga\ny = np.tanh(x[:, 0]) + x[:, 1] ** 2\n"
    "r = ga.evolve(x, y.astype(np.float32), ga.Settings(population=20, generations=5), np.random.default_rng(1))\n"
    "say(r.population, r.sse)",
    "lm": "from smscale.kernels import lm, lm_network as net\np = net.networks(x, np.tanh(x[:, 0]), 1.0, [5, 9])\n"
    "start = rng.normal(size=(2, p.table.parameters))\nsay(net.train(p, start, lm.Settings(max_steps=5)).best)",
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


@pytest.mark.parametrize("kernel", KERNELS)
def test_cold_and_warm_cache_give_the_same_bytes(kernel: str, tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    code = MADE + KERNELS[kernel]
    found = [
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert found[0] == found[1]
    assert len(found[0].strip()) == 32
