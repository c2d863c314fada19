"""The command line of the measurements: `smscale bench chunks | scaling`."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from smscale.errors import InputError


def add_bench(commands: Any) -> None:
    """Add `bench` to the commands of `smscale`."""
    bench = commands.add_parser("bench", help="measure this machine: chunk strategies, scaling with workers")
    names = bench.add_subparsers(required=True, metavar="NAME")
    chunks = names.add_parser(
        "chunks", help="which chunks serve a recipe best: files, bytes, seconds of each access pattern"
    )
    chunks.add_argument("recipe", nargs="?", help="a YAML recipe (default: a cube that is made)")
    _add_shared(chunks, "DAYSxROWSxCOLUMNS of a made cube (default: 64x600x900)")
    chunks.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace a value of the recipe, as chunks.time=4",
    )
    chunks.set_defaults(command=_chunks)
    scaling = names.add_parser("scaling", help="one worker against several: speed-up, efficiency, the scheduler's load")
    scaling.add_argument("--workers", default="1,2", metavar="N,N", help="how many, as 1,2,4 (default: 1,2)")
    _add_shared(scaling, "DAYSxROWSxCOLUMNS of a made season (default: 32x600x900)")
    scaling.set_defaults(command=_scaling)


def _add_shared(parser: argparse.ArgumentParser, shape: str) -> None:
    parser.add_argument("--shape", metavar="DxRxC", help=shape)
    parser.add_argument("--folder", help="where cubes are written, and removed again (default: the temporary folder)")
    parser.add_argument(
        "--out", metavar="FOLDER", help="keep the table (CSV, Markdown, JSON, text) and the figure there"
    )
    parser.add_argument("--quick", action="store_true", help="a small cube and one turn: a rough answer")
    parser.add_argument(
        "--repeats", metavar="N", help="turns of every measurement, of which the median counts (default: 3)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON: the table and every turn")
    parser.add_argument("--quiet", action="store_true", help="only the result")


def _chunks(options: argparse.Namespace) -> int:
    from smscale.bench.chunks import bench_chunks

    shape = _shape(options.shape)
    report = bench_chunks(options.recipe, shape, settings=options.set, **_shared(options))
    return _show(report, options)


def _scaling(options: argparse.Namespace) -> int:
    from smscale.bench.scaling import bench_scaling

    workers = _numbers(options.workers, ",", "--workers", "whole numbers from 1, as 1,2,4")
    return _show(bench_scaling(workers, _shape(options.shape), **_shared(options)), options)


def _shared(options: argparse.Namespace) -> dict[str, Any]:
    repeats = _numbers(options.repeats, None, "--repeats", "a whole number from 1")[0] if options.repeats else None
    quiet = options.quiet or options.json
    say = (lambda text: None) if quiet else sys.stderr.write
    return {"folder": options.folder, "out": options.out, "quick": options.quick, "repeats": repeats, "say": say}


def _show(report: Any, options: argparse.Namespace) -> int:
    sys.stdout.write(json.dumps(report.to_dict(), indent=1) + "\n" if options.json else report.text)
    return 0


def _shape(given: str | None) -> tuple[int, int, int] | None:
    if given is None:
        return None
    expected = "days x rows x columns, as 174x900x1250"
    numbers = _numbers(given, "x", "--shape", expected)
    if len(numbers) != 3:
        raise InputError(f"--shape {given}: expected {expected}")
    days, rows, cols = numbers
    return days, rows, cols


def _numbers(given: str, between: str | None, option: str, expected: str) -> list[int]:
    """Whole numbers from 1."""
    try:
        numbers = [int(part) for part in given.split(between)]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise InputError(f"{option} {given}: expected {expected}")
    return numbers
