"""A full or read-only disk is told in one line, whatever the library that met it says."""

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from smscale import disk
from smscale.errors import InputError, StoreError
from smscale.places import file_to_write
from smscale.workspace import Workspace

FULL = os.strerror(errno.ENOSPC)


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond a thousand bytes: to a writer as good as a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_as_a_library(path: Path) -> None:
    """Fails without a word of why, as C libraries do."""
    with file_to_write(path) as half:
        half.write_bytes(b"x" * 500)
        raise RuntimeError("Write failed. See previous exception for details.")


def test_full_disk_that_a_library_does_not_name_is_named(tmp_path: Path, small_files: None) -> None:
    with pytest.raises(OSError, match="File too large") as caught:
        write_as_a_library(tmp_path / "x.tif")
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(tmp_path / "x.tif"))
    assert list(tmp_path.iterdir()) == []


def test_other_failure_of_a_library_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^Write failed\. See previous"):
        write_as_a_library(tmp_path / "x.tif")
    assert list(tmp_path.iterdir()) == []


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.ENOSPC, FULL), errno.ENOSPC),
        (PermissionError(errno.EACCES, "Permission denied"), errno.EACCES),
        (RuntimeError(f"I/O error: {FULL} (os error 28)"), errno.ENOSPC),
        (caused(ValueError("metadata not written"), OSError(errno.EDQUOT, "Disk quota exceeded")), errno.EDQUOT),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), None),
        (RuntimeError("wrong shape"), None),
    ],
)
def test_refusal_is_found_in_words_and_causes(error: Exception, number: int | None) -> None:
    assert disk.refusal(error) == number


def test_full_disk_anywhere_in_a_run_is_one_line(tmp_path: Path) -> None:
    line = (
        rf"report/index.html: cannot be written \({FULL}\): free the disk and run again; finished blocks stay finished$"
    )
    with pytest.raises(StoreError, match=line), Workspace(tmp_path / "w").held():
        raise OSError(errno.ENOSPC, FULL, "report/index.html")
    with pytest.raises(StoreError, match=rf"^{tmp_path}/w: cannot be written"), Workspace(tmp_path / "w").held():
        raise OSError(errno.ENOSPC, FULL)


@pytest.mark.parametrize("error", [InputError("no space left in the title"), ValueError("wrong"), KeyboardInterrupt()])
def test_other_errors_pass(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, disk.told(tmp_path):
        raise error
    assert caught.value is error
