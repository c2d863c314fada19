"""Models on disk: weights in safetensors beside model.json, checked by SHA-256. Nothing here can execute what it loads.

The weights' file is named by its content, so that putting another model.json in place is the one step by which a model is
replaced: whoever reads, and whatever is killed, finds the old model or the new one.
"""

from __future__ import annotations

import datetime
import errno
import fcntl
import hashlib
import json
import os
import re
import reprlib
import shutil
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as decode
from safetensors.numpy import save as encode

from smscale.errors import InputError

#: Version 1 had its weights in weights.safetensors, scores and the rest under "extra", and no standardiser to read.
FORMAT, VERSION = "smscale-model", 2
RECORD = "model.json"
#: Names that an artefact may have in its folder; what else lies there is left alone.
OURS = re.compile(r"model\.json|weights(-[0-9a-f]{16})?\.safetensors|\.[0-9a-f]{32}")
#: Bytes of the longest model.json that is read; those of a hundred features have 50 kB.
LONGEST_RECORD = 1 << 24
#: A writer may replace the model between the reading of its record and of its weights: so often it is read afresh.
READS = 20
#: Of this machine's memory, what a model's weights may take: they are held twice while they are decoded.
SHARE = 0.4
_FIX = "train the model again"


class Artefact(NamedTuple):
    """What a folder holds; `fingerprint` is the SHA-256 that covers all of it."""

    kind: str
    arrays: dict[str, NDArray[Any]]
    meta: dict[str, Any]
    fingerprint: str


def save(folder: Path | str, kind: str, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> Path:
    """Write an artefact in one move: a reader sees the old one, the new one, or none, whatever is killed or runs beside it.

    Parameters
    ----------
    folder : where; an artefact that stands there is replaced
    kind : which module reads it
    arrays : name -> numeric or boolean array of any shape
    meta : values that JSON holds (NumPy scalars and arrays are converted; NaN and infinity become null)

    Returns
    -------
    The folder. The same input gives the same bytes.

    Raises
    ------
    InputError : the folder holds something else, or cannot be written
    """
    folder = Path(folder)
    weights, record = pack(kind, arrays, meta)
    text = json.dumps(record, indent=2, sort_keys=True, allow_nan=False) + "\n"
    files = {_weights_name(record): weights, RECORD: text.encode()}
    try:
        _refuse_foreign(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        if folder.exists() or not _create(folder, files):
            _replace(folder, files)
    except OSError as error:
        raise InputError(
            f"{folder}: the model cannot be written ({error.strerror or error}); make room, or name a folder that can be written"
        ) from None
    return folder


def pack(kind: str, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """The weights' bytes and the record of an artefact; `record_sha256` is its fingerprint."""
    weights = encode({name: np.asarray(arrays[name], order="C") for name in sorted(arrays)})
    record = {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "weights_sha256": _sha(weights),
        "weights_bytes": len(weights),
        "meta": plain(meta),
    }
    return weights, {**record, "record_sha256": _sha(_canonical(record))}


def load(folder: Path | str) -> Artefact:
    """Kind, arrays and meta of an artefact.

    Raises
    ------
    InputError : absent, foreign, of another version, truncated or altered
    """
    folder = Path(folder)
    for _ in range(READS):
        record = _record(folder / RECORD)
        path = folder / _weights_name(record)
        if (weights := _bytes(path, record["weights_bytes"])) is not None:
            break
    else:
        raise InputError(f"{path}: is missing; {_FIX}")
    if len(weights) != record["weights_bytes"] or _sha(weights) != record["weights_sha256"]:
        raise InputError(f"{path}: altered or truncated (size or SHA-256 differ from {RECORD}); {_FIX}")
    try:
        arrays = decode(weights)
    except Exception as error:  # whatever a forged header provokes in the decoder
        raise InputError(f"{path}: not a safetensors file ({one_line(error)}); {_FIX}") from None
    return Artefact(record["kind"], arrays, record["meta"], record["record_sha256"])


def plain(value: Any) -> Any:
    """A value as JSON holds it; of what JSON has no form for, the name of its type."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return [plain(item) for item in value] if value.ndim else plain(value[()])
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        return [plain(item) for item in items]
    if isinstance(value, np.datetime64 | np.timedelta64 | os.PathLike | np.dtype):
        return str(value)
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return float(value) if np.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return type(value).__qualname__  # its repr may hold an address, which differs from run to run


def one_line(error: BaseException) -> str:
    """A message without line breaks, shortened."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."


# --- reading ---------------------------------------------------------------------------------------------------------


def _record(path: Path) -> dict[str, Any]:
    data = _bytes(path, LONGEST_RECORD)
    if data is None:
        raise InputError(f"{path.parent}: not a model (no {RECORD}); name the folder that `train` wrote")
    try:
        record = json.loads(data.decode(), object_pairs_hook=_without_repeats, parse_constant=_refuse_constant)
        if isinstance(record, dict):
            stated = record.pop("record_sha256", None)
            found = _sha(_canonical(record))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: unreadable or truncated ({one_line(error)}); {_FIX}") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InputError(f"{path}: not a model of smscale (no format {FORMAT!r}); name the folder that `train` wrote")
    version = record.get("version")
    if type(version) is not int or version != VERSION:
        raise InputError(f"{path}: version {reprlib.repr(version)}, this smscale reads {VERSION}; {_FIX}")
    if stated != found:
        raise InputError(f"{path}: altered (its own SHA-256 differs); {_FIX}")
    types = {"kind": str, "weights_sha256": str, "weights_bytes": int, "meta": dict}
    wrong = [name for name, kind in types.items() if type(record.get(name)) is not kind]
    if wrong or not re.fullmatch("[0-9a-f]{64}", record["weights_sha256"]):
        raise InputError(f"{path}: lacks {', '.join(wrong) or 'a SHA-256 of its weights'}; {_FIX}")
    return {**record, "record_sha256": stated}


def _bytes(path: Path, most: int) -> bytes | None:
    """A file's bytes; None if it is absent. Neither a pipe, a device nor a file longer than it may be is read."""
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise InputError(f"{path}: is not a file; {_FIX}")
        if state.st_size > most:
            raise InputError(f"{path}: altered or truncated ({state.st_size} bytes, at most {most} expected); {_FIX}")
        if state.st_size > _memory() * SHARE:  # a sparse file of any size costs a forger nothing
            raise MemoryError
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); see who may read it") from None
    except MemoryError:
        raise InputError(f"{path}: {state.st_size} bytes do not fit this machine's memory") from None


def _memory() -> int:
    """Bytes of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _weights_name(record: Mapping[str, Any]) -> str:
    return f"weights-{record['weights_sha256'][:16]}.safetensors"


# --- writing ---------------------------------------------------------------------------------------------------------


def _refuse_foreign(folder: Path) -> None:
    """A folder, or a model.json, of something else is not ours to replace."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    foreign = folder.exists() and not folder.is_dir()
    foreign |= bool(names) and not any(OURS.fullmatch(name) for name in names)
    if RECORD in names:
        with suppress(OSError, ValueError, RecursionError):  # a spoiled record is replaced
            record = json.loads((folder / RECORD).read_bytes())
            foreign |= not isinstance(record, dict) or record.get("format") != FORMAT
    if foreign:
        raise InputError(f"{folder}: exists and is not a model; give another folder or remove it")


def _create(folder: Path, files: Mapping[str, bytes]) -> bool:
    """The first model of a folder appears with it; False if the folder was there by then."""
    while True:
        made = folder.parent / f".{folder.name}-{uuid.uuid4().hex}"
        made.mkdir()
        try:
            with _held(made):
                if not made.exists():  # swept away before it was held
                    continue
                for name, data in files.items():
                    _write(made / name, data)
                os.rename(made, folder)
            return True
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
        finally:
            shutil.rmtree(made, ignore_errors=True)


def _replace(folder: Path, files: Mapping[str, bytes]) -> None:
    """Weights first, then the record that names them, then the old weights go."""
    with _held(folder):
        new = [name for name in files if not (folder / name).exists()]
        try:
            for name, data in files.items():
                _put(folder / name, data)
        except OSError:
            for name in new:
                (folder / name).unlink(missing_ok=True)
            raise
        for path in folder.iterdir():
            if path.name not in files and OURS.fullmatch(path.name):
                path.unlink(missing_ok=True)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """No other writer is in a folder; the lock goes with whoever holds it. On a file system without locks nobody waits."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _sweep(folder: Path) -> None:
    """Remove what killed writers of this model left beside it: what nobody holds."""
    left = re.compile(rf"\.{re.escape(folder.name)}-[0-9a-f]{{32}}")
    for path in folder.parent.iterdir():
        if not left.fullmatch(path.name):
            continue
        with suppress(OSError):
            handle = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(handle)


def _put(path: Path, data: bytes) -> None:
    new = path.with_name(f".{uuid.uuid4().hex}")
    try:
        _write(new, data)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _canonical(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
