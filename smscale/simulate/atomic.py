"""Files appear whole or not at all: written under a temporary name, then put in their place."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

from smscale import places
from smscale.places import Place, file_to_write, place


def replacing(path: str | os.PathLike[str] | Place) -> AbstractContextManager[Path]:
    """A temporary path; it takes `path`'s place when the block ends well.

    Parent folders are created. If the block fails, the temporary file is removed and `path` stays as it was. What a killed
    process leaves behind is hidden and ends in `.partial`, so that no reader takes it for data.
    """
    return file_to_write(place(path))


def write_text(path: str | os.PathLike[str] | Place, text: str) -> Place:
    """Write one UTF-8 text file whole, with the line ends that `text` has."""
    where = place(path)
    places.write_text(where, text)
    return where
