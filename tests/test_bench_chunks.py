"""`smscale bench chunks`: strategies give back what was written, patterns read what they say, the rule chooses as it is told."""

import json
import os
import shutil
import time
from argparse import ArgumentParser
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib.axes import Axes

from smscale.bench import choose, chunks, engines, measure, tables, turns
from smscale.bench.choose import Measured, left_in, recommend, slow_downs
from smscale.bench.chunk_report import Tried
from smscale.bench.commands import add_bench
from smscale.bench.map_trials import PATTERNS as MAP_PATTERNS
from smscale.bench.measure import Cost
from smscale.bench.overpass_values import LST_STEP, write_maps, write_values
from smscale.bench.packing import PACKINGS
from smscale.bench.regions import DAY
from smscale.bench.strategies import Strategy, fitted, layouts, of_chunks
from smscale.bench.trials import PATTERNS, Trial
from smscale.config import Chunks
from smscale.errors import InputError, RecipeError, SmscaleError
from smscale.evaluate.bench_figures import PATTERNS as PATTERNS_SHOWN
from smscale.evaluate.bench_figures import chunk_figure
from smscale.grid import Grid

SIZE = (20, 23, 31, 2)
LAYOUTS = {
    "unsharded": ((2, 10, 20, 1), None),
    "sharded": ((4, 5, 10, 1), (8, 10, 20, 2)),
    "together": ((1, 10, 10, 2), (8, 10, 20, 2)),
}
CODECS, ENGINES, _ = engines.installed()
#: Engines with every codec, and with every packing: our own store knows zstd alone and no packing, TensorStore no pcodec.
OURS = ("smscale", "zstd", "none")
VARIANTS = [
    OURS,
    *((e, c, "none") for e, c in product(ENGINES, CODECS) if e != "smscale" and (e, c) != ("tensorstore", "pcodec")),
    *((e, "zstd", p) for e, p in product(ENGINES, PACKINGS) if e != "smscale" and p != "none"),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "values.npy"
    write_values(path, Grid.latlon(100, 30, 100.31, 30.23), SIZE[0])
    write_maps(path.with_name("maps.npy"), path)
    return path


def trial(source: Path, folder: Path, layout: str = "sharded", variant: tuple[str, str, str] = OURS) -> Trial:
    engine, codec, packing = variant
    strategy = Strategy("s", *LAYOUTS[layout], codec, packing, engine)
    return Trial(strategy, source, folder / "s", (8, 10, 20), source.with_name("maps.npy"))


# -- the values ---------------------------------------------------------------------------------------


def test_values_are_those_of_modis_behind_clouds(source: Path) -> None:
    values = np.load(source)
    assert values.shape == SIZE
    assert 0.75 < np.isnan(values[..., 0]).mean() < 0.95
    np.testing.assert_array_equal(np.isnan(values[..., 0]), np.isnan(values[..., 1]))
    steps = values[np.isfinite(values[..., 0]), 0] / LST_STEP
    np.testing.assert_allclose(steps, np.rint(steps), atol=2e-3)  # float32 of 300 K
    assert 200 < np.nanmin(values[..., 0]) < np.nanmax(values[..., 0]) < 350
    assert 0 <= np.nanmin(values[..., 1]) < np.nanmax(values[..., 1]) <= 24


@pytest.mark.parametrize("packing", PACKINGS.values(), ids=lambda p: p.name)
def test_a_packing_changes_values_by_no_more_than_it_says(packing) -> None:
    rng = np.random.default_rng(0)
    values = rng.uniform(0, 350, 20_000).astype(np.float32)
    values[::7] = np.nan
    held = values.copy()
    back = packing.unpack(packing.pack(values))
    np.testing.assert_array_equal(values, held)  # what is given is not written to
    assert packing.pack(values).dtype == packing.dtype
    np.testing.assert_array_equal(np.isnan(back), np.isnan(values))
    assert np.nanmax(np.abs(back.astype(np.float64) - values)) <= packing.error


def test_a_map_has_values_where_lst_has_and_the_last_bits_of_a_model(source: Path) -> None:
    maps, lst = np.load(source.with_name("maps.npy")), np.load(source)[..., :1]
    assert (maps.shape, maps.dtype) == (lst.shape, np.float32)
    np.testing.assert_array_equal(np.isnan(maps), np.isnan(lst))
    seen = maps[np.isfinite(maps)]
    assert -0.2 < seen.min() < seen.max() < 0.8
    assert np.unique(seen).size > 0.99 * seen.size  # nothing that a codec could count


def test_int16_loses_nothing_of_modis_own_steps(source: Path) -> None:
    values = np.load(source)
    packing = PACKINGS["int16"]
    np.testing.assert_array_equal(packing.unpack(packing.pack(values)), values)


# -- strategies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "variant"),
    [("sharded", v) for v in VARIANTS] + [("unsharded", (e, "zstd", "none")) for e in ENGINES],
    ids=lambda v: v if isinstance(v, str) else "-".join(v),
)
def test_every_engine_gives_back_what_it_wrote(source: Path, tmp_path: Path, layout: str, variant) -> None:
    tried = trial(source, tmp_path, layout, variant)
    cost = tried.write()
    values, error = np.load(source), PACKINGS[variant[2]].error
    assert cost.moved == values.nbytes
    array = tried.opened()
    for pattern in ("map", "season", "upscale", "inference"):
        for region in tried.regions(pattern, 3):
            np.testing.assert_allclose(array.read(region), values[region], rtol=0, atol=error)


@pytest.mark.parametrize("strategy", layouts(SIZE), ids=lambda s: s.name)
def test_every_named_layout_serves_every_pattern(source: Path, tmp_path: Path, strategy: Strategy) -> None:
    tried = Trial(strategy, source, tmp_path / "s", (64, 300, 300), source.with_name("maps.npy"))
    tried.write()
    values, array = np.load(source), tried.opened()
    moved = {}
    for pattern in PATTERNS:
        moved[pattern] = tried.run(pattern, 1).moved
        for region in tried.regions(pattern, 1) if pattern != "append" and pattern not in MAP_PATTERNS else ():
            np.testing.assert_array_equal(array.read(region), values[region])
    steps, rows, cols, both = SIZE
    assert moved == {
        "map": 4 * DAY * rows * cols,
        "season": 4 * steps * both,
        "upscale": 4 * np.prod(SIZE),
        "inference": 4 * steps * rows * cols,
        "append": 4 * DAY * rows * cols * both,
        "maps": 8 * steps * rows * cols,
        "maps day": 8 * DAY * rows * cols,
        "maps season": 8 * steps,
    }


@pytest.mark.parametrize("variant", [OURS, ("zarrs", "zstd", "bitround"), ("tensorstore", "zstd", "none")], ids=str)
def test_a_map_and_its_status_come_back_as_they_were_whatever_the_cube_loses(
    source: Path, tmp_path: Path, variant: tuple[str, str, str]
) -> None:
    if variant[0] not in ENGINES:
        pytest.skip(f"no {variant[0]}")
    tried = trial(source, tmp_path, "sharded", variant)._map_trial
    tried.write()
    values = np.load(source.with_name("maps.npy"))
    whole = tuple(slice(0, n) for n in values.shape)
    written, status = (array.read(whole) for array in tried.opened())
    np.testing.assert_array_equal(written, values)
    np.testing.assert_array_equal(status, np.where(np.isnan(values), 4, 0))  # no LST: 1 << 2
    assert status.dtype == np.uint32
    assert {region[0].stop - region[0].start for region in [tried.region("maps day", n) for n in range(5)]} == {DAY}
    assert tried.region("maps season", 1)[0] == slice(0, SIZE[0])


def test_where_no_block_fits_neither_inference_nor_maps_are_asked_for(source: Path, tmp_path: Path) -> None:
    tried = Trial(Strategy("s", *LAYOUTS["sharded"]), source, tmp_path, None, source.with_name("maps.npy"))
    assert set(PATTERNS) - set(tried.patterns) == {"inference", *MAP_PATTERNS}


@pytest.mark.parametrize("pattern", ["upscale", "inference"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_pass_reads_every_value_once(source: Path, tmp_path: Path, layout: str, pattern: str) -> None:
    seen = np.zeros(SIZE, int)
    for region in trial(source, tmp_path, layout).regions(pattern, 0):
        seen[region] += 1
    expected = np.ones(SIZE, int)
    expected[..., 1] = pattern == "upscale"
    np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_appended_day_lies_in_files_of_its_own(source: Path, tmp_path: Path, layout: str) -> None:
    tried = trial(source, tmp_path, layout)
    tried.run("append", 5)
    newest = tried.folder / "newest"
    day = engines.opened(newest, tried.strategy.of_a_day(DAY)).read(tuple(slice(0, n) for n in (DAY, *SIZE[1:])))
    days = np.load(source).reshape(SIZE[0] // DAY, DAY, *SIZE[1:])
    assert any(np.array_equal(day, one, equal_nan=True) for one in days)
    assert tried.moves == (layout != "unsharded")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_are_one_a_shard_or_one_a_chunk_unless_all_of_it_is_cloud(
    source: Path, tmp_path: Path, layout: str
) -> None:
    tried, values = trial(source, tmp_path, layout), np.load(source)
    tried.write()
    starts = product(*(range(0, n, u) for n, u in zip(SIZE, tried.strategy.unit, strict=True)))
    parts = [tuple(slice(s, s + u) for s, u in zip(at, tried.strategy.unit, strict=True)) for at in starts]
    found = sum(p.is_file() and p.name != "zarr.json" for p in tried.path.rglob("*"))
    assert found == sum(bool(np.isfinite(values[part]).any()) for part in parts)


def test_a_layout_is_fitted_to_a_small_array() -> None:
    found = fitted(Strategy("s", (8, 100, 100, 1), (64, 300, 300, 2)), (20, 130, 90, 2))
    assert found.chunk == (8, 100, 90, 1)
    assert found.shard == (24, 200, 90, 2)


def test_what_a_recipe_would_say_is_the_same_layout() -> None:
    size = (348, 900, 1250, 2)
    for strategy in layouts(size):
        if strategy.settable:
            said = yaml.safe_load(strategy.recipe_text)["chunks"]
            held = of_chunks("own", Chunks(**{**said, "shard": tuple(said["shard"])}), size)
            assert (held.chunk, held.shard) == (strategy.chunk, strategy.shard)


def in_cache(path: Path) -> bool:
    """Whether the system holds a file's first bytes in its page cache: a read that may not wait for the disk gets them."""
    handle = os.open(path, os.O_RDONLY)
    try:
        return os.preadv(handle, [bytearray(1000)], 0, os.RWF_NOWAIT) == 1000
    except BlockingIOError:
        return False
    finally:
        os.close(handle)


def test_pages_leave_the_cache_and_files_stay(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a"
    path.parent.mkdir()
    path.write_bytes(b"x" * 100_000)
    try:
        held = in_cache(path)
    except (AttributeError, OSError) as error:
        pytest.skip(f"this system does not tell what its page cache holds: {error}")
    assert held
    measure.out_of_cache(tmp_path)
    if in_cache(path):
        pytest.skip(f"{tmp_path} lies on a file system that is memory")
    assert path.read_bytes() == b"x" * 100_000
    assert in_cache(path)  # which shows that the cache was asked


@pytest.mark.parametrize("what", ["write", "maps", "append"])
def test_what_is_written_is_on_the_disk_when_the_clock_stops(
    source: Path, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []
    monkeypatch.setattr(measure, "write_out", lambda folder: seen.append(folder) or time.sleep(0.2) or 0)
    tried = trial(source, tmp_path)
    cost = tried.write() if what == "write" else tried.run(what, 0)
    assert [p.relative_to(tmp_path / "s").as_posix() for p in seen] == [
        {"write": "cube.zarr", "maps": "maps", "append": "newest"}[what]
    ]
    assert cost.seconds > 0.2


def test_memory_is_what_a_call_gains_at_its_peak() -> None:
    def much() -> int:
        return int(np.ones(8_000_000).sum()) and 7

    cost = measure.cost_of([much, lambda: 1])
    assert cost.moved == 8
    if Path("/proc/self/clear_refs").exists():
        assert 60e6 < cost.peak < 90e6


# -- the rules ----------------------------------------------------------------------------------------


def measured(
    name: str,
    *seconds: float | None,
    maps: tuple[float, float, float] = (1, 1, 1),
    files: float = 10,
    size: int = 100,
    **more: bool,
) -> Measured:
    """`seconds` of the patterns of the cube, in the order of `WEIGHTS`, and of those of maps."""
    return Measured(name, dict(zip(choose.WEIGHTS, (*seconds, *maps), strict=True)), files, size, **more)


def test_a_screen_leaves_in_what_is_better_by_the_margin() -> None:
    ours = {"ours": [1, 1, 1]}
    assert left_in({**ours, "a": [0.5, 1, 1], "b": [0.9, 0.9, 0.9]}, "ours") == "a"  # 0.79 and 0.90
    assert left_in({**ours, "a": [0.95, 0.95, 0.95]}, "ours") is None
    assert left_in({**ours, "a": [0.2, 3, 3]}, "ours") is None
    assert left_in(ours, "ours") is None


def test_the_least_weighted_mean_of_slow_downs_is_recommended() -> None:
    # map and append twice as slow (weights 1 and 1), the passes twice as quick (2 and 2); of 14
    slow_maps, slow_passes = measured("a", 2, 1, 1, 1, 2), measured("b", 1, 1, 2, 2, 1)
    found = slow_downs([slow_maps, slow_passes])
    assert found["a"]["mean"] == pytest.approx(2 ** (2 / 14))
    assert found["b"]["mean"] == pytest.approx(2 ** (4 / 14))
    choice = recommend([slow_maps, slow_passes])
    assert choice is not None
    assert choice.name == "a"
    assert "season, upscale, inference" in choice.reason
    assert not choice.keeps_own


def test_half_of_what_counts_are_the_maps() -> None:
    cube, maps = measured("cube", 2, 2, 2, 2, 2), measured("maps", 1, 1, 1, 1, 1, maps=(2, 2, 2))
    found = slow_downs([cube, maps])
    assert found["cube"]["mean"] == pytest.approx(found["maps"]["mean"]) == pytest.approx(2**0.5)
    slower = measured("slower", 1.5, 1.5, 1.5, 1.5, 1.5, maps=(2, 2, 2))
    choice = recommend([slower, measured("quick maps", 2, 2, 2, 2, 2)], "slower")
    assert choice is not None
    assert choice.name == "quick maps"


def test_what_loses_values_may_take_less_than_the_best_and_what_does_not_serve_all_has_no_mean() -> None:
    lossy, part = measured("lossy", 1, 1, 1, 1, 1, lossless=False), measured("part", 1, 2, 2, None, 2)
    found = slow_downs([measured("plain", 2, 2, 2, 2, 2, maps=(2, 2, 2)), lossy, part])
    assert found["lossy"]["mean"] == pytest.approx(0.5)
    assert found["plain"] == dict.fromkeys([*choose.WEIGHTS, "mean"], pytest.approx(1))
    assert (found["part"]["map"], found["part"]["season"]) == (0.5, 1)
    assert "inference" not in found["part"]
    assert "mean" not in found["part"]


def test_the_best_of_a_pattern_does_not_change_the_order() -> None:
    rows = [measured("a", 2, 1, 1, 1, 2), measured("b", 1, 1, 2, 2, 1)]
    quick = measured("quick", 0.01, 5, 5, 5, 5)
    alone, beside = slow_downs(rows), slow_downs([*rows, quick])
    assert (alone["a"]["mean"] < alone["b"]["mean"]) == (beside["a"]["mean"] < beside["b"]["mean"])
    assert beside["a"]["mean"] / beside["b"]["mean"] == pytest.approx(alone["a"]["mean"] / alone["b"]["mean"])


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (measured("best", 0.1, 0.1, 0.1, 0.1, 0.1, files=1001), "files"),
        (measured("best", 0.1, 0.1, 0.1, 0.1, 0.1, size=151), "bytes"),
        (measured("best", 0.1, 0.1, 0.1, 0.1, 0.1, lossless=False), "changes values"),
        (measured("best", 0.1, 0.1, 0.1, 0.1, 0.1, settable=False), "cannot ask"),
        (measured("best", 0.1, 0.1, 0.1, None, 0.1), "memory"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_may_not_be_chosen_is_left_out_with_the_reason(other: Measured, why: str) -> None:
    choice = recommend([measured("plain", 1, 1, 1, 1, 1), other])
    assert choice is not None
    assert choice.name == "plain"
    assert why in choice.excluded["best"]


def test_what_no_recipe_can_ask_for_may_be_best_beyond() -> None:
    rows = [measured("plain", 1, 1, 1, 1, 1), measured("engine", 0.5, 0.5, 0.5, 0.5, 0.5, settable=False)]
    beyond = recommend(rows, "plain", settable=False)
    assert beyond is not None
    assert beyond.name == "engine"


@pytest.mark.parametrize(("seconds", "chosen"), [(0.95, "own"), (0.85, "other")])
def test_own_chunks_stay_unless_others_are_better_by_the_margin(seconds: float, chosen: str) -> None:
    other = measured("other", *[seconds] * 5, maps=(seconds,) * 3)
    choice = recommend([measured("own", 1, 1, 1, 1, 1), other], "own")
    assert choice is not None
    assert (choice.name, choice.keeps_own) == (chosen, chosen == "own")


def test_nothing_is_recommended_where_no_block_fits() -> None:
    assert recommend([measured("a", 1, 1, 1, None, 1)]) is None


def test_an_appended_day_pays_its_share_of_being_moved() -> None:
    def took(*seconds: float) -> list[Cost]:
        return [Cost(each, 2 * each, 100, 0, 0) for each in seconds]

    costs = {"write": took(10, 12, 50), "append": took(1, 1, 3), "map": took(4, 2, 9)}
    held, alone = (Strategy("s", (1, 5, 5, 1), shard) for shard in ((8, 5, 5, 2), None))
    assert Tried(held, costs, 1, 1).seconds("append", 24) == 1 + 12 * DAY / 24
    assert Tried(held, costs, 1, 1).seconds("append", 24, cpu=True) == 2 + 24 * DAY / 24
    assert Tried(alone, costs, 1, 1).seconds("append", 24) == 1  # a step is a file: it lies where it will stay
    assert Tried(held, costs, 1, 1).seconds("map", 24) == 4
    assert Tried(held, costs, 1, 1).seconds("inference", 24) is None


# -- the whole ----------------------------------------------------------------------------------------


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(
        "name: small\ninputs: raw\nregion: [100.0, 30.0, 100.3, 30.2]\nperiod: [2017-06-10, 2017-06-17]\n"
        "chunks: {time: 1, lat: 10, lon: 10, shard: [4, 1, 3]}\nmodels: {gabp: {}}\n"
    )
    return path


@pytest.fixture
def in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (chunks, turns):
        monkeypatch.setattr(module, "process", lambda: ThreadPoolExecutor(1))


@pytest.mark.usefixtures("in_threads")
def test_a_recipe_is_measured_and_its_chunks_are_judged(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "CODECS", {"zstd": engines.CODECS["zstd"], "pcodec": (dict, "no_such_module")})
    said: list[str] = []
    folder = tmp_path / "cubes"
    report = chunks.bench_chunks(
        str(recipe), folder=str(folder), out=str(tmp_path / "out"), quick=True, say=said.append
    )
    assert report.size == (16, 20, 30, 2)
    assert report.own == "recipe"
    names = [t.strategy.name for t in report.tried]
    assert names[0] == "recipe"
    assert report.tried[0].strategy.shard == (4, 10, 30, 2)
    assert {"map", "map-sharded", "map-together", "balanced-sharded", "series-sharded"} <= set(names)
    assert report.choice is not None
    assert report.choice.name in names
    assert ("keep them" in report.text) == (report.choice.name == "recipe")
    assert report.absent == ["pcodec"]
    assert "not installed, so not measured: pcodec" in report.text
    assert not [row for row in report.screened.rows if "pcodec" in row["name"]]
    assert not list(folder.iterdir())  # the cubes are removed
    told = json.loads((tmp_path / "out/chunks.json").read_text())
    assert told == json.loads(json.dumps(report.to_dict()))
    assert len(told["turns"]["recipe"]["map"]) == 1
    assert (tmp_path / "out/chunks.csv").read_text().splitlines()[0].startswith("strategy,chunk,shard,codec")
    assert (tmp_path / "out/chunks.md").read_text().count("\n") == len(names) + 2
    assert (tmp_path / "out/chunks.png").read_bytes()[:4] == b"\x89PNG"
    assert all(row["files"] and row["MB"] > 0 and row["map ms"] > 0 and row["maps MB/s"] > 0 for row in report.rows)
    lossless = [t.strategy.lossless for t in report.tried]
    assert min(row["slow-down"] for row, whole in zip(report.rows, lossless, strict=True) if whole) >= 1


def test_a_strategy_has_a_process_on_one_core() -> None:
    with turns.process() as process:
        assert process.submit(os.getpid).result() != os.getpid()
        assert len(process.submit(os.sched_getaffinity, 0).result()) == 1


@pytest.mark.usefixtures("in_threads")
def test_all_are_written_and_out_of_the_cache_before_one_is_read_and_turns_begin_with_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str]] = []
    cost = Cost(1.0, 1.0, 1, 1, 1)

    class Told(Trial):
        def write(self) -> Cost:
            return seen.append((self.strategy.name, "write")) or cost

        def run(self, pattern: str, turn: int) -> Cost:
            return seen.append((self.strategy.name, pattern)) or cost

    monkeypatch.setattr(measure, "out_of_cache", lambda folder: seen.append((folder.name, "out")))
    names = "abcd"
    trials = [Told(Strategy(n, (1, 1, 1, 1), None), tmp_path, tmp_path / n, (1, 1, 1), tmp_path) for n in names]
    turns.in_turns([(t, "") for t in trials], 2)
    assert [name for name, what in seen if what == "write"] == list("abcdcdab")
    assert [name for name, what in seen if what == "map"] == list("abcdcdab")
    each = seen[len(names) : len(seen[len(names) :]) // 2 + len(names)]  # the first turn, less what warms up
    written, emptied = (
        [i for i, (_, what) in enumerate(each) if what in some] for some in (("write", "maps"), ("out",))
    )
    read = [i for i, (_, what) in enumerate(each) if what not in ("write", "maps", "out")]
    assert max(written) < min(emptied) < max(emptied) < min(read)
    assert (len(written), len(emptied), len(read)) == (8, 4, 4 * (len(PATTERNS) - 1))


def test_a_layout_whose_block_fits_no_worker_is_told(recipe: Path) -> None:
    from smscale import config
    from smscale.pipeline.layout import layout_of

    small = config.read(recipe)
    block, refused = chunks.block_of(Strategy("s", (64, 3000, 3000, 1), None), small, layout_of(small))
    assert (block, refused) == ((16, 20, 30), "")  # no larger than the arrays
    wide = config.read(recipe, ["region=[100, 20, 120, 40]"])
    block, refused = chunks.block_of(Strategy("s", (16, 2000, 2000, 1), None), wide, layout_of(wide))
    assert block is None
    assert "memory_per_worker" in refused


# -- bad input ----------------------------------------------------------------------------------------


def called(*words: str) -> int:
    parser = ArgumentParser()
    add_bench(parser.add_subparsers())
    options = parser.parse_args(["bench", *words])
    return int(options.command(options))


@pytest.fixture
def unwritable(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("no folder")
    return path / "below"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["chunks", "--shape", "0x30x30"], "--shape 0x30x30: expected days x rows x columns"),
        (["chunks", "--shape", "30x30"], "expected days x rows x columns"),
        (["chunks", "--shape", "ten"], "expected days x rows x columns"),
        (["chunks", "--shape", "1x30x30"], "days must be 2 to"),
        (["chunks", "--shape", "9x30x9000"], "columns must be 2 to"),
        (["chunks", "--repeats", "0"], "--repeats 0: expected a whole number from 1"),
        (["chunks", "nowhere.yaml"], "recipe not found"),
        (["scaling", "--workers", "0,2"], "--workers 0,2: expected whole numbers from 1"),
        (["scaling", "--workers", "two"], "--workers two: expected whole numbers from 1"),
        (["scaling", "--workers", "99999"], "this machine has"),
        (["scaling", "--shape", "0x1x1"], "expected days x rows x columns"),
    ],
)
def test_bad_words_are_refused_in_one_line(words: list[str], told: str) -> None:
    with pytest.raises(SmscaleError) as refused:
        called(*words)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("option", ["--folder", "--out"])
@pytest.mark.parametrize("name", ["chunks", "scaling"])
def test_a_folder_that_cannot_be_written_is_refused(unwritable: Path, name: str, option: str) -> None:
    with pytest.raises(InputError, match=f"{option} .* cannot be written"):
        called(name, option, str(unwritable))


@pytest.mark.parametrize("name", ["chunks", "scaling"])
def test_too_little_room_is_refused_before_the_start(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(InputError, match=r"GB needed, 0\.0 GB free"):
        called(name, "--folder", str(tmp_path), "--shape", "16x300x300")
    assert not list(tmp_path.iterdir())


def test_a_recipe_without_a_cube_and_a_shape_beside_a_recipe_are_refused(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="not beside a recipe"):
        called("chunks", str(recipe), "--shape", "4x30x30")
    table = tmp_path / "table.yaml"
    table.write_text("name: t\ntable: {file: t.csv, target: y}\npredictors: [x]\nmodels: {rf: {}}\n")
    with pytest.raises(RecipeError, match="makes no cube"):
        called("chunks", str(table))


# -- tables and the figure ----------------------------------------------------------------------------


def test_tables_say_the_same_in_three_forms() -> None:
    rows = [
        {"name": "a", "x": 1234.5, "n": 3, "kept": True, "none": None},
        {"name": "bb", "x": 0.01234, "n": 20, "kept": False, "none": 2.0},
    ]
    assert tables.text(rows).splitlines() == [
        "name       x   n  kept  none",
        "a       1234   3  yes      –",
        "bb    0.0123  20           2",
    ]
    assert tables.markdown(rows).splitlines()[1] == "| --- | ---: | ---: | --- | ---: |"
    assert tables.as_csv(rows).splitlines()[1] == "a,1234.5,3,True,"


def test_the_figure_shows_the_ratios_that_choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[str, list[float]] = {}
    plot = Axes.plot

    def kept(axes: Axes, x: Any, *given: Any, **style: Any) -> Any:
        shown[style["label"]] = list(x)
        return plot(axes, x, *given, **style)

    monkeypatch.setattr(Axes, "plot", kept)
    every = [measured("a", 2, 1, 1, 1, 1), measured("b", 1, 1, 1, None, 1, maps=(1, 3, 1))]
    rows = [{"strategy": name, "MB": 1.0, "files": 2, "MiB": 3.0} for name in ("a *", "b")]
    chunk_figure(rows, slow_downs(every), tmp_path / "chunks.png", "a")
    assert {label for label, *_ in PATTERNS_SHOWN.values()} == set(shown)
    assert shown["cube: a day"] == [1, 0.5]
    np.testing.assert_array_equal(shown["inference pass"], [1, np.nan])
    assert shown["map of a day"] == [1, 3]
    assert set(PATTERNS_SHOWN) == set(choose.WEIGHTS) == set(PATTERNS)


def test_the_figure_needs_a_strategy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one"):
        chunk_figure([], {}, tmp_path / "none.png")
