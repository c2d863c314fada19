"""One strategy under the access patterns of maps: written in the blocks of `downscale`, a day and a season read."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smscale.bench import engines, measure
from smscale.bench.measure import Cost
from smscale.bench.regions import day_of, place_of, reads, windows
from smscale.bench.strategies import Shape, Strategy
from smscale.schema import Status

#: Access pattern -> what is read or written.
PATTERNS = {
    "maps": "a map and its status, written in the blocks of `downscale`",
    "maps day": "a map and its status of a day, morning and evening, of the whole region",
    "maps season": "a map and its status in one cell at all steps",
}


@dataclass(frozen=True)
class MapTrial:
    """A strategy, and the map that it is tried on.

    Parameters
    ----------
    source : a NumPy file of the map, float32 (time, lat, lon, 1)
    folder : where its files go
    block : steps, rows and columns of a block of `downscale`
    """

    strategy: Strategy
    source: Path
    folder: Path
    block: tuple[int, int, int]

    @property
    def values(self) -> np.ndarray:
        return np.load(self.source, mmap_mode="r")

    @property
    def size(self) -> Shape:
        steps, rows, cols, _ = self.values.shape
        return steps, rows, cols, 1

    @property
    def paths(self) -> tuple[Path, Path]:
        """Of the map and of its status."""
        return self.folder / "map.zarr", self.folder / "status.zarr"

    def opened(self) -> list[engines.Array]:
        """The map and its status, as `write` left them."""
        return [engines.opened(path, self.strategy.of_maps) for path in self.paths]

    def write(self) -> Cost:
        """Both, block by block, until they are on the disk."""
        shutil.rmtree(self.folder, ignore_errors=True)
        arrays = [engines.create(p, self.strategy.of_maps, self.size, bool(i)) for i, p in enumerate(self.paths)]
        return measure.cost_of(self._writes(arrays))

    def run(self, pattern: str, turn: int) -> Cost:
        """A day or a season with cold files; `turn` says which, the same for every strategy."""
        measure.out_of_cache(self.folder)
        region = self.region(pattern, turn)
        return measure.cost_of(call for array in self.opened() for call in reads(array, [region]))

    def region(self, pattern: str, turn: int) -> engines.Region:
        """What a pattern reads."""
        steps, rows, cols, _ = self.size
        if pattern == "maps day":
            return day_of(turn, steps), slice(0, rows), slice(0, cols), slice(0, 1)
        return slice(0, steps), *place_of(turn, rows, cols), slice(0, 1)

    def _writes(self, arrays: list[engines.Array]) -> Iterator[Callable[[], int]]:
        """Writes of blocks; the values are read from the source between them."""
        for region in windows(self.size, (*self.block, 1)):
            values = np.ascontiguousarray(self.values[region])
            status = np.where(np.isnan(values), np.uint32(Status.NO_LST), np.uint32(0))
            for array, part in zip(arrays, (values, status), strict=True):

                def write(
                    array: engines.Array = array, region: engines.Region = region, part: np.ndarray = part
                ) -> int:
                    array.write(region, part)
                    return part.nbytes

                yield write
        yield lambda: measure.write_out(self.folder)
