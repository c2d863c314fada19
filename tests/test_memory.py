"""Memory of one worker: what a block of ingest holds does not grow with the region."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from smscale.simulate.modis_files import granule_name, write_lst

DAY, TILE = "2019-11-01", (14, 9)

PEAK = """
import sys
from pathlib import Path
import numpy as np, xarray as xr
from smscale import schema, store
from smscale.grid import Grid
from smscale.pipeline.ingest.fine import Source, overpass_block
from smscale.pipeline.layout import Layout
size, path, cube = float(sys.argv[1]), sys.argv[2], sys.argv[3]
grid = Grid.latlon(-35 - size / 2, -10 - size / 2, -35 + size / 2, -10 + size / 2)
days = [str(np.datetime64("2019-11-01") + i) for i in range(4)]
sizes, shards = {"time": 1, "lat": 300, "lon": 300, "variable": 1}, {"time": 8, "lat": 300, "lon": 300}
layout = Layout(grid, Grid.ease2(36, *grid.bounds), (days[0], days[-1]), sizes, shards)
labels = [(day, overpass) for day in days for overpass in schema.OVERPASSES]
values = store.empty((8, *grid.shape, 2), np.float32)
store.create(cube, "fine/overpass", xr.Dataset({"values": (("time", "lat", "lon", "variable"), values)}), sizes, shards)
tiles = {(h, v): (path,) for h in range(13, 17) for v in (8, 9, 10)}
for band in layout.bands().values():
    files, source = dict.fromkeys(days, tiles), Source("LST", "paper")
    overpass_block(cube, "fine/overpass", slice(0, 8), band, grid, labels, files, source)
status = Path("/proc/self/status").read_text().splitlines()
print(next(line for line in status if line.startswith("VmHWM")).split()[1])
"""


@pytest.fixture(scope="module")
def tile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made LST tile with clouds."""
    rng = np.random.default_rng(0)
    lst = 290 + rng.normal(size=(1200, 1200)).cumsum(axis=0) * 0.02
    cloud = rng.random((12, 12)).repeat(100, 0).repeat(100, 1) < 0.4
    lst = np.where(cloud, np.nan, lst)
    path = tmp_path_factory.mktemp("tile") / granule_name("MYD11A1", DAY, *TILE)
    return write_lst(path, DAY, *TILE, lst + 8, lst - 6, 13.5, 1.5)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of resident memory is read from /proc")
def test_a_region_sixteen_times_as_large_needs_less_than_a_tenth_more_memory(tile: Path, tmp_path: Path) -> None:
    def peak(size: int) -> int:
        """KiB at the peak of a process that ingests four days of a square of `size` degrees at a corner of four tiles."""
        arguments = [sys.executable, "-c", PEAK, str(size), str(tile), str(tmp_path / f"{size}.zarr")]
        return int(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.split()[-1])

    small, large = peak(3), peak(12)
    assert small > 100_000, "a process with its libraries is larger than that"
    assert large < 1.1 * small
