"""In a worker, before it takes work (dask's `preload`): notes each block that begins, and takes up memory where it is told to."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask

from smscale import block_task

#: dask's settings, which travel to workers: the file of blocks begun, and the one that asks for memory.
BEGUN, HOG = "faults.begun", "faults.hog"
#: What a greedy worker takes at a time, until it is ended, and how long it takes between.
PIECE, PIECE_SECONDS = 64 << 20, 0.02


def note_blocks(path: Path) -> None:
    """Write a line for every call of a block in this process: its function and a hash of its arguments."""
    from dask.base import tokenize

    timed: Callable[..., Any] = block_task.timed
    line = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def noted(call: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        os.write(line, f"{call.__name__} {tokenize(args)}\n".encode())
        return timed(call, args)

    block_task.timed = noted


def take_memory_when_asked(asked: Path) -> None:
    """The first worker that sees the file takes memory until it is ended."""
    taken, held = asked.with_suffix(".taken"), []
    while True:
        try:
            asked.rename(taken)
            break
        except FileNotFoundError:
            time.sleep(0.01)
    while True:
        held.append(bytearray(os.urandom(4096)) * (PIECE // 4096))
        time.sleep(PIECE_SECONDS)


def dask_setup(worker: Any) -> None:
    """Called by dask."""
    if begun := dask.config.get(BEGUN, None):
        note_blocks(Path(begun))
    if hog := dask.config.get(HOG, None):
        threading.Thread(target=take_memory_when_asked, args=(Path(hog),), daemon=True).start()
