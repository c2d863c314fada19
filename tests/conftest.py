"""Shared fixtures. `real` hands out files of ../shared/data (or $SMSCALE_REAL_DATA); tests that use it carry `real_data`."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

REAL_DATA = Path(os.environ.get("SMSCALE_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if REAL_DATA.is_dir():
        return
    absent = pytest.mark.skip(reason=f"real files not found at {REAL_DATA}")
    for item in items:
        if "real_data" in item.keywords:
            item.add_marker(absent)


@pytest.fixture(scope="session")
def real() -> Callable[[str], Path]:
    """`real("smap/x.h5")` is the path of one real file."""

    def path(name: str) -> Path:
        found = REAL_DATA / name
        assert found.exists(), f"real data folder {REAL_DATA} lacks {name}"
        return found

    return path
