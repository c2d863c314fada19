"""The walls of the house: which part may import which (docs/architecture.md)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import smscale

PACKAGE = Path(smscale.__file__).parent
FILES = sorted(p for p in PACKAGE.rglob("*.py"))

#: Values and kernels at the bottom; the engine and the store above them; rooms above those; the order of rooms on top.
VALUES = {"errors", "grid", "sinusoidal", "schema"}
GROUND = {
    "kernels",
    "store",
    "store_inspection",
    "shards",
    "blocks",
    "block_plan",
    "block_task",
    "block_window",
    "ledger",
    "heap",
    "places",
    "owners",
    "claims",
    "disk",
    "progress",
    "redaction",
    "run_record",
}
ROOMS = {"sources", "cube", "features", "models", "fusion", "evaluate", "simulate", "fetch", "export"}
TOP = {"workspace", "config", "cluster", "pipeline", "planning", "bench", "observe", "cli", "__init__", "__main__"}
TOP |= {"receipts", "exports", "verify", "inspect"}

#: Libraries that stay in their room.
KEPT_IN = {
    "torch": {"models", "kernels"},
    "pytorch_lightning": {"models"},
    "lightning": {"models"},
    "xgboost": {"models"},
    "sklearn": {"models"},
    "dask_ml": {"models"},
    "matplotlib": {"evaluate"},
    "h5py": {"sources", "simulate"},
    "pyhdf": {"sources", "simulate"},
    "requests": {"fetch"},
    "rasterio": {"sources", "simulate", "export"},
    "netCDF4": {"export"},
    "zarr": {"store", "shards", "bench"},
    "obstore": {"places"},
    "distributed": {"cluster", "blocks", "block_window"},
    "dask_jobqueue": {"cluster"},
    "dask_kubernetes": {"cluster"},
    "kr8s": {"cluster"},
    "prometheus_client": {"observe"},
    "icechunk": {"store"},
}


def part(path: Path) -> str:
    """The room, or the module, that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports, at any depth; `if TYPE_CHECKING` blocks are not run and do not count."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own(names: set[str]) -> set[str]:
    """Parts of smscale among imported names."""
    parts = {name.split(".")[1] for name in names if name.startswith("smscale.")}
    return {p for p in parts if p in VALUES | GROUND | ROOMS | TOP}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    here, names = part(path), imported(path)
    allowed = {
        **dict.fromkeys(VALUES, VALUES),
        **dict.fromkeys(GROUND, VALUES | GROUND),
        **{room: VALUES | GROUND | {room} for room in ROOMS},
        "workspace": VALUES | GROUND,
        "receipts": VALUES | GROUND | {"workspace"},
        "exports": VALUES | GROUND | {"workspace", "receipts", "export"},
        "verify": VALUES | GROUND | {"workspace", "receipts", "models"},
        "inspect": VALUES | GROUND | {"workspace", "receipts", "verify"},
        "config": VALUES,
        "cluster": VALUES | {"config", "owners"},
    }.get(here)
    if allowed is not None:
        assert own(names) <= allowed | {here}, f"{path} reaches through a wall"
    else:
        assert here in TOP


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_libraries_stay_in_their_room(path: Path) -> None:
    roots = {name.split(".")[0] for name in imported(path)}
    for library, rooms in KEPT_IN.items():
        if library in roots:
            assert part(path) in rooms, f"{library} belongs in {rooms}"


def test_import_smscale_is_light() -> None:
    heavy = [
        "torch",
        "sklearn",
        "xgboost",
        "matplotlib",
        "pytorch_lightning",
        "rasterio",
        "dask",
        "xarray",
        "pandas",
        "numba",
        "icechunk",
        "obstore",
    ]
    code = f"import sys, smscale; print([m for m in {heavy!r} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_public_names_resolve() -> None:
    for name in smscale.__all__:
        assert getattr(smscale, name) is not None
