"""Models on disk: weights.safetensors beside model.json, checked by SHA-256. Nothing here can execute what it loads."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as decode
from safetensors.numpy import save as encode

from smscale.errors import InputError

FORMAT, VERSION = "smscale-model", 1
WEIGHTS, RECORD = "weights.safetensors", "model.json"
_FIX = "train the model again"


def save(folder: Path | str, kind: str, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> Path:
    """Write an artefact in one move: a reader sees the old one, the new one, or none.

    Parameters
    ----------
    folder : where; an artefact that stands there is replaced
    kind : which module reads it
    arrays : name -> numeric or boolean array of any shape
    meta : values that JSON holds (NumPy scalars and arrays are converted; NaN and infinity become null)

    Returns
    -------
    The folder. The same input gives the same bytes.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / RECORD).is_file():
        raise InputError(f"{folder}: exists and is not a model; give another folder or remove it")
    weights = encode({name: np.asarray(arrays[name], order="C") for name in sorted(arrays)})
    record = {"format": FORMAT, "version": VERSION, "kind": kind, "weights_sha256": _sha(weights), "meta": plain(meta)}
    record["record_sha256"] = _sha(_canonical(record))
    text = json.dumps(record, indent=2, sort_keys=True, allow_nan=False) + "\n"
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(f".{folder.name}-*"):  # of a killed writer
        shutil.rmtree(leftover, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        os.chmod(made, 0o755)
        _write(made / WEIGHTS, weights)
        _write(made / RECORD, text.encode())
        _put(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def load(folder: Path | str) -> tuple[str, dict[str, NDArray[Any]], dict[str, Any]]:
    """kind, arrays and meta of an artefact.

    Raises
    ------
    InputError : absent, foreign, of a later version, truncated or altered
    """
    folder = Path(folder)
    record = _record(folder / RECORD)
    try:
        weights = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise InputError(f"{folder / WEIGHTS}: cannot be read ({error.strerror}); {_FIX}") from None
    if _sha(weights) != record["weights_sha256"]:
        raise InputError(f"{folder / WEIGHTS}: altered or truncated (SHA-256 differs from model.json); {_FIX}")
    try:
        arrays = decode(weights)
    except SafetensorError as error:
        raise InputError(f"{folder / WEIGHTS}: not a safetensors file ({_one_line(error)}); {_FIX}") from None
    return record["kind"], arrays, record["meta"]


def plain(value: Any) -> Any:
    """A value as JSON holds it."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        return [plain(item) for item in items]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)


def _record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path.parent}: not a model (no {RECORD}); name the folder that `train` wrote") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: unreadable or truncated ({_one_line(error)}); {_FIX}") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InputError(f"{path}: not a model of smscale (no format {FORMAT!r}); name the folder that `train` wrote")
    if record.get("version") != VERSION:
        raise InputError(f"{path}: version {record.get('version')!r}, this smscale reads {VERSION}; {_FIX}")
    stated = record.pop("record_sha256", None)
    if stated != _sha(_canonical(record)) or not {"kind", "weights_sha256", "meta"} <= record.keys():
        raise InputError(f"{path}: altered (its own SHA-256 differs); {_FIX}")
    return record


def _put(made: Path, folder: Path) -> None:
    if not folder.exists():
        os.rename(made, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    os.rename(folder, old / "model")
    os.rename(made, folder)
    shutil.rmtree(old, ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _canonical(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
