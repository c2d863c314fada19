"""The plan of blocks: whole shards, every cell once, within the memory of a worker, or refused with what would fit."""

import re

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from smscale.block_plan import USABLE, Block, Cost, Plan, plan
from smscale.errors import RecipeError

MIB = 2**20
SIZES = {"time": 348, "lat": 870, "lon": 1290}
CHUNKS = {"time": 1, "lat": 300, "lon": 300}
SHARDS = {"time": 8, "lat": 300, "lon": 300}
#: Of a pass with forests: bytes for each cell and step, and for each cell.
COST = Cost(200, 1000, 0, 50 * MIB)


def planned(memory: float, cost: Cost = COST, **how: int) -> Plan:
    return plan(SIZES, CHUNKS, SHARDS, cost, round(memory * MIB), process=400 * MIB, what="the pass", **how)


small = st.integers(1, 9)
shapes = st.fixed_dictionaries({name: st.tuples(st.integers(1, 40), small, small) for name in ("time", "lat", "lon")})


@settings(max_examples=60, deadline=None)
@given(shapes, st.integers(0, 3000), st.integers(1, 40), st.integers(1, 80))
def test_blocks_are_whole_shards_and_cover_every_cell_once(
    shape: dict[str, tuple[int, int, int]], room: int, most: int, least: int
) -> None:
    sizes, chunks, each = ({name: shape[name][i] for name in ("time", "lat", "lon")} for i in range(3))
    shards = {name: chunks[name] * each[name] for name in chunks}
    one = Cost(3, 5, 7, 11).of(*(min(shards[name], sizes[name]) for name in sizes))
    memory = round((one + room) / USABLE) + 1
    found = plan(sizes, chunks, shards, Cost(3, 5, 7, 11), memory, process=0, most_steps=most, least_blocks=least)
    seen = np.zeros(tuple(sizes.values()), np.int8)
    for block in found.blocks:
        seen[block.region] += 1
        for part, size, shard in zip(block.region, sizes.values(), shards.values(), strict=True):
            assert part.start % shard == 0
            assert part.stop % shard == 0 or part.stop == size
        assert Cost(3, 5, 7, 11).of(*block.shape) <= found.block_bytes <= USABLE * memory
        assert block.cells == np.prod(block.shape)
    assert (seen == 1).all()
    assert len({block.key for block in found.blocks}) == len(found.blocks) == len(found.slabs) * len(found.tiles)
    if found.shape[0] > shards["time"]:
        assert found.shape[0] <= most
        assert len(found.blocks) >= least


def test_days_share_a_block_as_far_as_memory_and_number_of_blocks_allow() -> None:
    assert planned(1500).shape == (32, 300, 300)
    assert planned(800).shape == (8, 300, 300)
    assert planned(950).shape[0] == 16
    assert planned(1500, most_steps=16).shape == (16, 300, 300)
    assert planned(1500, least_blocks=300).shape == (16, 300, 300)
    assert planned(1500, least_blocks=10**6).shape == (8, 300, 300)


def test_runs_of_days_are_about_equally_long() -> None:
    lengths = [slab.stop - slab.start for slab in planned(1500, most_steps=40).slabs]
    assert sum(lengths) == 348
    assert lengths == [40] * 8 + [28]
    nine = plan({**SIZES, "time": 72}, CHUNKS, SHARDS, COST, 1500 * MIB, process=0, least_blocks=1)
    assert [slab.stop - slab.start for slab in nine.slabs] == [24, 24, 24], "not 32, 32, 8"


def test_tiles_come_one_after_another_with_all_their_days() -> None:
    found = planned(1500)
    places = [(b.rows.start, b.cols.start) for b in found.blocks]
    assert places == sorted(places)
    assert [b.steps.start for b in found.blocks[: len(found.slabs)]] == [32 * i for i in range(11)]


def test_a_larger_map_or_a_longer_season_needs_no_more_memory() -> None:
    country = plan({"time": 7300, "lat": 9000, "lon": 9000}, CHUNKS, SHARDS, COST, 1500 * MIB, process=400 * MIB)
    assert (country.shape, country.predicted) == (planned(1500).shape, planned(1500).predicted)
    assert len(country.slabs) * len(country.tiles) == 229 * 900


def test_blocks_of_other_extent_have_other_keys() -> None:
    short, long = (Block(slice(0, n), slice(0, 300), slice(300, 550)) for n in (8, 32))
    assert (short.key, long.key) == ("0+8-0+300-300+250", "0+32-0+300-300+250")
    assert {b.key for b in planned(1500).blocks}.isdisjoint(b.key for b in planned(800).blocks)


def test_costs_add() -> None:
    assert (Cost(1, 2, 3, 4) + Cost(10, 20, 30, 40)).of(2, 3, 5) == 30 * 11 + 15 * 22 + 2 * 33 + 44


@pytest.mark.parametrize("memory", [700, 600, 530])
def test_what_does_not_fit_is_refused_with_chunks_that_do(memory: int) -> None:
    with pytest.raises(RecipeError) as told:
        planned(memory)
    text = str(told.value)
    assert text.startswith(f"resources.memory_per_worker: {memory} MiB given, but the pass needs 673 MiB in a worker")
    assert "\n" not in text
    advice = re.search(r"or set chunks: (\{.*\}), which fits$", text)
    assert advice is not None
    chunks = yaml.safe_load(advice[1])
    number = chunks.pop("shard")
    shards = {name: cells * n for (name, cells), n in zip(chunks.items(), number, strict=True)}
    assert plan(SIZES, chunks, shards, COST, memory * MIB, process=400 * MIB).predicted <= USABLE * memory * MIB
    enough = re.search(r"give (\d+) MiB", text)
    assert enough is not None
    assert planned(int(enough[1])).shape == (8, 300, 300)


def test_advice_keeps_tiles_as_large_as_can_be() -> None:
    with pytest.raises(RecipeError, match=re.escape("set chunks: {time: 1, lat: 300, lon: 300, shard: [4, 1, 1]}")):
        planned(700)
    with pytest.raises(RecipeError, match=re.escape("set chunks: {time: 1, lat: 150, lon: 150, shard: [8, 1, 1]}")):
        planned(590)


def test_no_chunks_help_where_the_process_alone_is_too_large() -> None:
    with pytest.raises(RecipeError, match=r"give \d+ MiB: no smaller chunks would fit$"):
        planned(490)
    assert planned(2000, Cost(fixed=1300 * MIB)).predicted == 1700 * MIB
