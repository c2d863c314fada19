"""From stored tiles to the fine grid: MODIS and VIIRS tiles resampled, terrain reduced, local days untangled.

Arrays here lie on windows of a fine `Grid`; nothing needs more than the tiles and the part of the elevation model that a
window touches.
"""

from smscale.cube.local_days import NOMINAL_HOURS, LocalViews, lst_file_dates, lst_local_day_offset
from smscale.cube.terrain import static_layers
from smscale.cube.tiles import AREA, Classes, Lattice, Mean, TileWindow, quality_words, raster_window, tile_window

__all__ = [
    "AREA",
    "NOMINAL_HOURS",
    "Classes",
    "Lattice",
    "LocalViews",
    "Mean",
    "TileWindow",
    "lst_file_dates",
    "lst_local_day_offset",
    "quality_words",
    "raster_window",
    "static_layers",
    "tile_window",
]
