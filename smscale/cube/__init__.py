"""From tiles to the fine grid: MODIS tiles resampled, terrain reduced, local days untangled.

Arrays here lie on windows of a fine `Grid`; nothing needs more than the tiles and the part of the elevation model that a
window touches.
"""

from smscale.cube.local_days import AQUA_HOURS, lst_file_dates, lst_local_day_offset, select_lst
from smscale.cube.terrain import static_layers
from smscale.cube.tiles import TileWindow, sample_tiles, tile_window

__all__ = [
    "AQUA_HOURS",
    "TileWindow",
    "lst_file_dates",
    "lst_local_day_offset",
    "sample_tiles",
    "select_lst",
    "static_layers",
    "tile_window",
]
