"""Maps as files that other programs read: GeoTIFF (COG), CF NetCDF, tables of points and of polygons."""

from smscale.export.files import Exported
from smscale.export.geotiff import write_geotiffs
from smscale.export.layer import Layer, Step, cut
from smscale.export.netcdf import write_netcdf
from smscale.export.tables import write_points, write_polygons

__all__ = [
    "Exported",
    "Layer",
    "Step",
    "cut",
    "write_geotiffs",
    "write_netcdf",
    "write_points",
    "write_polygons",
]
