"""Coarse-mean closure of a map of 1.1 M cells, a third of them missing in clouds: against reading the map from memory, and a peer.

The peer is what a user would write: means by area, the residuals spread by SciPy's cubic splines, once. It leaves an error, which is
printed beside ours. All run on one thread.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from benchmarks.timing import medians, report
from smscale.fusion.closure import Closure, errors, solve
from smscale.fusion.closure_sums import Sums, block_sums, merge
from smscale.grid import Grid
from smscale.kernels import overlap

STEPS = 48
FINE = Grid.latlon(97.35, 26.05, 108.54, 36)
COARSE = Grid.ease2(36, *FINE.bounds)
#: A block of the Sichuan recipe: steps, rows, columns.
BLOCK = (8, 300, 300)


def season() -> np.ndarray:
    """(48, 995, 1119) float32 with clouds of 25 cells and scattered holes."""
    rng = np.random.default_rng(0)
    values = rng.uniform(0.25, 0.35, (STEPS, *FINE.shape)).astype(np.float32)
    for plane in values:
        cloud = np.kron(rng.random((40, 45)) < 0.3, np.ones((25, 25), bool))[: FINE.shape[0], : FINE.shape[1]]
        plane[cloud | (rng.random(FINE.shape, dtype=np.float32) < 0.05)] = np.nan
    return values


def retrievals(sums: Sums) -> np.ndarray:
    """(t, r, c): two of three cells have one, as SMAP sees a region every 1.5 days."""
    rng = np.random.default_rng(1)
    mean = sums.mean()
    return np.where(rng.random(mean.shape) < 2 / 3, mean + rng.normal(0, 0.03, mean.shape), np.nan)


def blocks() -> list[tuple[slice, slice, slice]]:
    """Steps, rows, columns of every block."""
    spans = [
        [slice(i, min(i + size, n)) for i in range(0, n, size)]
        for n, size in zip((STEPS, *FINE.shape), BLOCK, strict=True)
    ]
    return [(t, y, x) for t in spans[0] for y in spans[1] for x in spans[2]]


def by_splines(field: np.ndarray, smap: np.ndarray, out: np.ndarray) -> np.ndarray:
    """The peer, step by step."""
    lat, lon = FINE.overlap(COARSE)
    whole = overlap.cell_areas(COARSE.lat_edges, COARSE.lon_edges)
    rows = np.interp(-FINE.lat, -COARSE.lat, np.arange(COARSE.shape[0]))
    cols = np.interp(FINE.lon, COARSE.lon, np.arange(COARSE.shape[1]))
    places = np.meshgrid(rows.astype(np.float32), cols.astype(np.float32), indexing="ij")
    lat, lon = lat.astype(np.float32), lon.astype(np.float32)
    for plane, target, result in zip(field, smap, out, strict=True):
        valid = np.isfinite(plane)
        area = lat @ valid.astype(np.float32) @ lon.T
        with np.errstate(invalid="ignore"):
            residual = target - lat @ np.where(valid, plane, 0) @ lon.T / area
        residual = np.where((area >= 0.5 * whole) & np.isfinite(residual), residual, 0)
        result[:] = plane + ndimage.map_coordinates(residual.astype(np.float32), places, order=3, mode="nearest")
    return out


def main() -> None:
    """Print seconds of each part, and the closure errors."""
    field = season()
    out = np.empty_like(field)
    sums = merge([block_sums(field, FINE, COARSE)], COARSE)
    smap = retrievals(sums)
    closure = solve(sums, smap, COARSE)

    # blocks as they come from a store: arrays of their own
    parts = [(p, FINE.window(*p[1:]), np.ascontiguousarray(field[p])) for p in blocks()]
    results = [(np.empty_like(part), np.zeros(part.shape, np.uint32)) for _, _, part in parts]

    def pass_one(spline: bool = True) -> Sums:
        return merge([block_sums(part, grid, COARSE, p[0].start, spline) for p, grid, part in parts], COARSE)

    def pass_two() -> None:
        for (p, grid, part), (closed, status) in zip(parts, results, strict=True):
            closure.apply(part, grid, p[0], status=status, out=closed)

    def whole() -> Closure:
        found = solve(pass_one(), smap, COARSE)
        pass_two()
        return found

    seconds = medians(
        {
            "closure, both passes, by blocks": whole,
            "  pass one: sums": pass_one,
            "  solve": lambda: solve(sums, smap, COARSE),
            "  pass two: add, clip, status": pass_two,
            "  sums of the result, for its error": lambda: pass_one(False),
            "read the map (np.max)": lambda: np.fmax.reduce(field, axis=None),
            "copy the map": lambda: np.copyto(out, field),
            "area means and SciPy's splines, once": lambda: by_splines(field, smap, out),  # the last to write `out`
        },
        repeats=3,
    )
    # the map is read twice, the closed map written, the status read and written
    report(f"closure of {STEPS} steps", seconds, "closure, both passes, by blocks", 5 * field.nbytes, [])
    for name in ("peer", "ours"):
        if name == "ours":
            for (p, _, _), (closed, _) in zip(parts, results, strict=True):
                out[p] = closed
        after = errors(merge([block_sums(out, FINE, COARSE)], COARSE), smap, closure.closed).report()
        print(f"  closure error of {name}: rmse {after['rmse']:.1e}, largest {after['max']:.1e} m3 m-3")
    print(
        f"  before: {errors(sums, smap, closure.closed).report()['rmse']:.4f}; coarse cells x steps: {closure.counts()}"
    )


if __name__ == "__main__":
    main()
