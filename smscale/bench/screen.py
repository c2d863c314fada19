"""A quick screen on one tile: which codec, packing and engine are worth a strategy of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from smscale.bench import choose, engines, measure
from smscale.bench.packing import PACKINGS
from smscale.bench.strategies import OUR_CODEC, OUR_ENGINE, Shape, Strategy, layouts
from smscale.bench.trials import Trial

#: Cells of the tile at most: steps, rows, columns.
TILE = (16, 300, 300)
#: Codecs that packed values are tried with.
PACKED_WITH = (OUR_CODEC, "blosc-zstd")


@dataclass(frozen=True)
class Screened:
    """What the screen found.

    rows : one for each candidate: kind, name, MB, MB written and read a CPU second, largest error, mean of the ratios to ours
    codec : (codec, packing) that it leaves in; engine; None where nothing is better than ours
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    codec: tuple[str, str] | None = None
    engine: str | None = None

    def strategies(self, size: Shape) -> list[Strategy]:
        """What is left in, each on the layout where it matters most: codecs on large chunks, engines on many small ones."""
        named = {s.name: s for s in layouts(size)}
        found = [_coded(named["map-sharded"], *self.codec)] if self.codec else []
        return found + ([_with_engine(named["balanced-sharded"], self.engine)] if self.engine else [])


def screen(source: Path, folder: Path, repeats: int) -> Screened:
    """Try every codec, packing and engine that is installed on a tile of the values."""
    tile = folder / "tile.npy"
    values = np.load(source, mmap_mode="r")[tuple(slice(0, n) for n in TILE)]
    np.save(tile, values)
    steps, rows, cols, variables = values.shape
    named = {s.name: s for s in layouts((steps, rows, cols, variables))}
    codecs, zarr_engines, _ = engines.installed()
    coded = [(c, "none") for c in codecs] + [(c, p) for p in PACKINGS if p != "none" for c in PACKED_WITH]
    candidates: dict[tuple[str, Any], Strategy] = {
        ("codec", key): _coded(named["map-sharded"], *key) for key in coded if key[0] in codecs
    }
    candidates |= {("engine", e): _with_engine(named["balanced-sharded"], e) for e in zarr_engines}
    trials = {
        key: Trial(strategy, tile, folder / f"c{i}", (steps, rows, cols))
        for i, (key, strategy) in enumerate(candidates.items())
    }
    costs = _in_turns(trials, repeats)
    rows_found, kept = [], {}
    for kind, ours in (("codec", (OUR_CODEC, "none")), ("engine", OUR_ENGINE)):
        group = {key: found for (k, key), found in costs.items() if k == kind}
        kept[kind] = choose.left_in(group, ours)
        rows_found += [
            _row(kind, trials[kind, key], found, group[ours], key == kept[kind]) for key, found in group.items()
        ]
    return Screened(rows_found, kept["codec"], kept["engine"])


def _coded(layout: Strategy, codec: str, packing: str) -> Strategy:
    """A layout with another codec: by zarr-python, since `store` knows but one."""
    name = codec if packing == "none" else f"{packing} {codec}"
    return Strategy(f"{layout.name} {name}", layout.chunk, layout.shard, codec, packing, "zarr-python")


def _with_engine(layout: Strategy, engine: str) -> Strategy:
    return Strategy(f"{layout.name} {engine}", layout.chunk, layout.shard, engine=engine)


def _in_turns(trials: Mapping[Any, Trial], repeats: int) -> dict[Any, list[float]]:
    """Bytes, CPU seconds to write, to read all, to read a season: medians of the turns, of which the first does not count.

    CPU rather than the clock: a codec and an engine are work, and other work on the machine must not choose between them.
    """
    found: dict[Any, list[tuple[float, ...]]] = {name: [] for name in trials}
    for turn in range(repeats + 1):
        for name, trial in trials.items():
            write = trial.write().cpu
            _, size = measure.files_and_bytes(trial.folder)
            read, season = (trial.run(pattern, turn).cpu for pattern in ("upscale", "season"))
            if turn:
                found[name].append((size, write, read, season))
    return {name: [median(each) for each in zip(*turns, strict=True)] for name, turns in found.items()}


def _row(kind: str, trial: Trial, costs: Sequence[float], ours: Sequence[float], left_in: bool) -> dict[str, Any]:
    size, write, read, season = costs
    values = trial.values.nbytes / 1e6
    s = trial.strategy
    return {
        "kind": kind,
        "name": s.engine if kind == "engine" else s.name.partition(" ")[2],
        "MB": size / 1e6,
        "write MB/s": values / write,
        "read MB/s": values / read,
        "season ms": season * 1e3,
        "error at most": PACKINGS[s.packing].error,
        "mean ratio": choose.mean_ratio(costs, ours),
        "left in": left_in,
    }
