"""Shared fixtures. `real` hands out files of ../shared/data (or $SMSCALE_REAL_DATA); tests that use it carry `real_data`.

`tiny_run` is one finished run of recipes/tiny.yaml, made once for all processes: nobody writes to it, `copy_run` makes copies.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

REAL_DATA = Path(os.environ.get("SMSCALE_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
TINY = Path(__file__).parent / "recipes" / "tiny.yaml"
#: What a run makes of its input.
PRODUCTS = ("cube.zarr", "samples.parquet", "samples.csv", "models", "maps.zarr", "report")


#: Files that take longest: they start first, so that no worker ends alone with one of them. The second needs no `tiny_run`, which
#: the first makes: of two workers neither waits for it.
LONGEST = (
    "test_resume.py",
    "test_gabp.py",
    "test_pipeline.py",
    "test_cnn.py",
    "test_kernel_cache.py",
    "test_search.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONGEST)))
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


@pytest.fixture(scope="session")
def tiny_recipe() -> Path:
    """The recipe of the smallest run that goes through everything."""
    return TINY


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace of one finished run of the tiny recipe, made in this process; what it said is beside it in said.txt."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return _run_tiny(tmp_path_factory.mktemp("tiny"))
    folder = tmp_path_factory.getbasetemp().parent / "tiny"  # the first of the processes makes it, the others wait
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return folder / "run" if (folder / "said.txt").exists() else _run_tiny(folder)


def _run_tiny(folder: Path) -> Path:
    from smscale import config, pipeline
    from smscale.workspace import Workspace

    said: list[str] = []
    pipeline.run(config.read(TINY), Workspace(folder / "run"), cluster=None, progress=False, say=said.append)
    (folder / "said.txt").write_text("".join(said))
    return folder / "run"


@pytest.fixture(scope="session")
def copy_run() -> Callable[..., Path]:
    """`copy_run(run, target)` copies a workspace, its world by hard links; `without=` names what stays behind."""

    def copy(run: Path, target: Path, without: tuple[str, ...] = ()) -> Path:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copytree(run / "world", target / "world", copy_function=os.link)
        for name in ("ledger", *PRODUCTS):
            if name not in without:
                source = run / name
                copied = shutil.copytree if source.is_dir() else shutil.copy2
                copied(source, target / name)
        return target

    return copy


@pytest.fixture(scope="session")
def digests() -> Callable[[Path], dict[str, str]]:
    """`digests(run)`: path below the workspace -> SHA-256, of every file that a run makes."""

    def of(run: Path) -> dict[str, str]:
        files = [p for name in PRODUCTS for p in ((run / name).rglob("*") if (run / name).is_dir() else [run / name])]
        found = {p.relative_to(run).as_posix(): p for p in files if p.is_file()}
        return {name: hashlib.sha256(p.read_bytes()).hexdigest() for name, p in sorted(found.items())}

    return of
