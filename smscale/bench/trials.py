"""One strategy under the access patterns of the project: the cube written, maps, seasons and passes read, a day appended."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from smscale.bench import engines, map_trials, measure
from smscale.bench.map_trials import MapTrial
from smscale.bench.measure import Cost
from smscale.bench.regions import DAY, day_of, place_of, reads, windows
from smscale.bench.strategies import Shape, Strategy
from smscale.blocks import spans

#: Steps that ingest holds when it writes: those of a shard of the maps.
HELD_STEPS = 8
#: A pass is measured on the first steps: of every strategy the same, and as many as the longest chunks.
PASS_STEPS = 64
LST, BOTH = slice(0, 1), slice(0, 2)

#: Access pattern -> what is read or written.
PATTERNS = {
    "map": "LST of a day, morning and evening, of the whole region",
    "season": "LST and view time of one cell at all steps",
    "upscale": "every plane of the first 64 steps, shard by shard, as `match` reads it",
    "inference": "LST of the first 64 steps, block by block, as `downscale` reads it",
    "append": "a day, written in files of its own, and its share of moving it into the cube later",
    **map_trials.PATTERNS,
}


@dataclass(frozen=True)
class Trial:
    """A strategy, and what it is tried on.

    Parameters
    ----------
    source : a NumPy file of the values, float32 (time, lat, lon, variable)
    folder : where its files go
    block : steps, rows and columns of a block of the inference pass; None where none fits the memory of a worker
    maps : a NumPy file of a map, float32 (time, lat, lon, 1), where maps are asked for
    """

    strategy: Strategy
    source: Path
    folder: Path
    block: tuple[int, int, int] | None
    maps: Path | None = None

    @property
    def values(self) -> np.ndarray:
        return np.load(self.source, mmap_mode="r")

    @property
    def size(self) -> Shape:
        steps, rows, cols, variables = self.values.shape
        return steps, rows, cols, variables

    @property
    def path(self) -> Path:
        return self.folder / "cube.zarr"

    def opened(self) -> engines.Array:
        """The cube, as `write` left it."""
        return engines.opened(self.path, self.strategy)

    @property
    def patterns(self) -> list[str]:
        """Those that the strategy can serve."""
        return [name for name in PATTERNS if self.block or name not in ("inference", *map_trials.PATTERNS)]

    def write(self) -> Cost:
        """The whole cube, file by file, until it is on the disk."""
        shutil.rmtree(self.path, ignore_errors=True)
        array = engines.create(self.path, self.strategy, self.size)
        return measure.cost_of(self._writes(array, windows(self.size, self._written_at_once), self.path))

    def run(self, pattern: str, turn: int) -> Cost:
        """One pattern with cold files; `turn` says which day or cell, the same for every strategy."""
        if pattern == "append":
            return self._append(turn)
        if pattern in map_trials.PATTERNS:
            return self._map_trial.write() if pattern == "maps" else self._map_trial.run(pattern, turn)
        measure.out_of_cache(self.path)
        return measure.cost_of(reads(self.opened(), self.regions(pattern, turn)))

    @property
    def _map_trial(self) -> MapTrial:
        assert self.maps is not None
        assert self.block is not None
        return MapTrial(self.strategy, self.maps, self.folder / "maps", self.block)

    def regions(self, pattern: str, turn: int) -> list[engines.Region]:
        """What a pattern reads."""
        asked = {"map": self._map, "season": self._season, "upscale": self._upscale, "inference": self._inference}
        return list(asked[pattern](turn))

    # -- what is read -----------------------------------------------------------------------------

    def _map(self, turn: int) -> Iterator[engines.Region]:
        yield day_of(turn, self.size[0]), slice(0, self.size[1]), slice(0, self.size[2]), LST

    def _season(self, turn: int) -> Iterator[engines.Region]:
        yield slice(0, self.size[0]), *place_of(turn, *self.size[1:3]), BOTH

    def _upscale(self, turn: int) -> Iterator[engines.Region]:
        steps, rows, cols, _ = self.strategy.unit
        slabs = spans(self._pass_steps, max(steps, DAY))
        for slab, variable in product(slabs, (slice(v, v + 1) for v in range(self.size[3]))):
            for window in product(spans(self.size[1], rows), spans(self.size[2], cols)):
                yield slab, *window, variable

    def _inference(self, turn: int) -> Iterator[engines.Region]:
        assert self.block is not None
        steps, rows, cols = self.block
        for window in product(spans(self.size[1], rows), spans(self.size[2], cols)):
            for slab in spans(self._pass_steps, steps):
                yield slab, *window, LST

    @property
    def _pass_steps(self) -> int:
        return min(self.size[0], PASS_STEPS)

    # -- how ----------------------------------------------------------------------------------------

    @property
    def _written_at_once(self) -> Shape:
        """A shard, or as many chunks along time as `HELD_STEPS` need; all variables."""
        steps, rows, cols, _ = self.strategy.unit
        return (steps if self.strategy.shard else -(-HELD_STEPS // steps) * steps), rows, cols, self.size[3]

    def _writes(
        self, array: engines.Array, regions: Iterable[engines.Region], folder: Path, first: int = 0
    ) -> Iterator[Callable[[], int]]:
        """Writes of regions, until `folder` is on the disk; their values are read from the source between them, `first` steps on."""
        for region in regions:
            slab = slice(region[0].start + first, region[0].stop + first)
            values = np.ascontiguousarray(self.values[slab, *region[1:]])

            def write(region: engines.Region = region, values: np.ndarray = values) -> int:
                array.write(region, values)
                return values.nbytes

            yield write
        yield lambda: measure.write_out(folder)

    def _append(self, turn: int) -> Cost:
        """A day in files of its own; and read again, where the cube's files hold more than a day and it must move there later."""
        newest, folder = self.strategy.of_a_day(DAY), self.folder / "newest"
        shutil.rmtree(folder, ignore_errors=True)
        size: Shape = (DAY, *self.size[1:])
        array = engines.create(folder, newest, size)
        parts = list(windows(size, (DAY, *newest.unit[1:3], size[3])))
        written = measure.cost_of(self._writes(array, parts, folder, day_of(turn, self.size[0]).start))
        if not self.moves:
            return written
        measure.out_of_cache(folder)
        read = measure.cost_of(reads(array, parts))
        return Cost(
            written.seconds + read.seconds,
            written.cpu + read.cpu,
            written.moved,
            written.touched + read.touched,
            max(written.peak, read.peak),
        )

    @property
    def moves(self) -> bool:
        """Whether a day that was appended is written again later, with its neighbours."""
        return self.strategy.unit[0] > DAY
