"""Named ways to lay out the overpass cube: which cells share a chunk, which chunks share a file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from smscale.config import Chunks

#: (time, lat, lon, variable) of an array, a chunk or a shard.
Shape = tuple[int, int, int, int]

#: Cells along a tile's side; the recipes' own.
TILE = 300
#: What the project writes today: `store` knows one codec, and no packing.
OUR_CODEC, OUR_ENGINE = "zstd", "smscale"


@dataclass(frozen=True)
class Strategy:
    """One way to lay out an array (time, lat, lon, variable).

    Parameters
    ----------
    chunk, shard : cells along each dimension; a shard is a multiple of its chunk and one file, without shards a chunk is
    codec, packing, engine : names in `engines.CODECS`, `packing.PACKINGS`, `engines.ENGINES`
    """

    name: str
    chunk: Shape
    shard: Shape | None
    codec: str = OUR_CODEC
    packing: str = "none"
    engine: str = OUR_ENGINE

    @property
    def unit(self) -> Shape:
        """Cells that are written whole: one file."""
        return self.shard or self.chunk

    @property
    def settable(self) -> bool:
        """Whether a recipe's `chunks:` can ask for it."""
        ours = (self.codec, self.packing, self.engine) == (OUR_CODEC, "none", OUR_ENGINE)
        return ours and self.chunk[3] == 1 and self.shard is not None

    @property
    def lossless(self) -> bool:
        return self.packing == "none"

    @property
    def recipe_text(self) -> str:
        """What stands in a recipe for it."""
        time, lat, lon, _ = self.chunk
        number = [s // c for s, c in zip(self.unit[:3], self.chunk[:3], strict=True)]
        return f"chunks: {{time: {time}, lat: {lat}, lon: {lon}, shard: {number}}}"

    @property
    def of_maps(self) -> Strategy:
        """The same for an array of maps, which has one variable and whose values are kept as they are."""
        shard = (*self.shard[:3], 1) if self.shard else None
        return replace(self, chunk=(*self.chunk[:3], 1), shard=shard, packing="none")

    def of_a_day(self, steps: int) -> Strategy:
        """The same for the newest day alone, in files of its own: how ingest appends."""
        chunk = shape_of((min(self.chunk[0], steps), *self.chunk[1:]))
        shard = shape_of((steps, *self.shard[1:])) if self.shard else None
        return replace(self, chunk=chunk, shard=shard)


def shape_of(cells: Iterable[int]) -> Shape:
    """Four numbers as a shape."""
    time, lat, lon, variable = cells
    return time, lat, lon, variable


def fitted(strategy: Strategy, size: Shape) -> Strategy:
    """The same, no larger than the array: a chunk within it, a shard a multiple of that."""
    chunk = shape_of(min(c, n) for c, n in zip(strategy.chunk, size, strict=True))
    if strategy.shard is None:
        return replace(strategy, chunk=chunk)
    shard = shape_of(-(-min(s, n) // c) * c for s, n, c in zip(strategy.shard, size, chunk, strict=True))
    return replace(strategy, chunk=chunk, shard=shard)


def layouts(size: Shape) -> list[Strategy]:
    """The named layouts for an array of `size`."""
    each, both = 1, size[3]
    named = [
        Strategy("map", (1, TILE, TILE, each), None),
        Strategy("map-sharded", (1, TILE, TILE, each), (8, TILE, TILE, both)),
        Strategy("map-together", (1, TILE, TILE, both), (8, TILE, TILE, both)),
        Strategy("balanced-sharded", (8, 100, 100, each), (8, TILE, TILE, both)),
        Strategy("balanced-deep", (32, 50, 50, each), (32, TILE, TILE, both)),
        Strategy("series-sharded", (64, 30, 30, each), (64, TILE, TILE, both)),
    ]
    return [fitted(s, size) for s in named]


def of_chunks(name: str, chunks: Chunks, size: Shape) -> Strategy:
    """What a recipe's `chunks:` asks for."""
    chunk = (chunks.time, chunks.lat, chunks.lon, 1)
    shard = shape_of((*(c * n for c, n in zip(chunk[:3], chunks.shard, strict=True)), size[3]))
    return fitted(Strategy(name, chunk, shard), size)
