"""Files that a stopped GABP training goes on from: its populations here, the state of its networks by Lightning.

Each holds the key of its training, a digest of all that the result depends on: a file of other data or settings is never
taken, whatever it is called.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from smscale.errors import InputError
from smscale.kernels import ga
from smscale.models.gabp.genetics import Evolved
from smscale.models.record import versions


class Kept(NamedTuple):
    """The files of one training."""

    folder: Path
    key: str

    @property
    def populations(self) -> Path:
        """What the genetic algorithms have found."""
        return self.folder / f"gabp-{self.key[:16]}.npz"

    @property
    def networks(self) -> Path:
        """Lightning's checkpoint."""
        return self.folder / f"gabp-{self.key[:16]}.ckpt"


def kept_in(folder: Path | None, told: Any, arrays: Sequence[NDArray[Any]]) -> Kept | None:
    """The files of the training that settings (whatever they are, by their repr) and arrays make; None for no folder.

    Raises
    ------
    InputError : the folder cannot be made
    """
    if folder is None:
        return None
    digest = hashlib.sha256(repr((told, sorted(versions().items()))).encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"checkpoint={str(folder)!r} is no folder that can be used ({error.strerror})") from error
    return Kept(folder, digest.hexdigest())


def save(kept: Kept, evolved: Sequence[Evolved]) -> None:
    """Write beside, then in place, so that a kill leaves a whole file or none."""
    arrays: dict[str, NDArray[Any]] = {
        f"{number}-{name}": value
        for number, result in enumerate(evolved)
        for name, value in {"starts": result.starts, **result.trace._asdict()}.items()
    }
    partial = kept.folder / f"{kept.populations.stem}-{os.getpid()}.partial.npz"
    np.savez(partial, **arrays, key=np.array(kept.key))  # type: ignore[arg-type]
    os.replace(partial, kept.populations)


def load(kept: Kept, folds: int) -> list[Evolved] | None:
    """What `save` has left; None where there is nothing of this training that is whole, so that it is made again."""
    try:
        with np.load(kept.populations, allow_pickle=False) as found:
            arrays = dict(found)
        evolved = [_evolved(arrays, number) for number in range(folds)]
    except (OSError, KeyError, ValueError, EOFError, BadZipFile):
        return None
    sound = all(np.isfinite(values).all() for result in evolved for values in (result.starts, *result.trace))
    return evolved if sound and str(arrays.get("key")) == kept.key else None


def _evolved(arrays: Mapping[str, NDArray[Any]], number: int) -> Evolved:
    trace = ga.Trace(*(arrays[f"{number}-{name}"] for name in ga.Trace._fields))
    return Evolved(arrays[f"{number}-starts"], trace)
