"""The command line: `smscale init | fetch | plan | run | simulate | inspect | verify | export | bench | certificates`."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from smscale import __version__
from smscale.bench.commands import add_bench
from smscale.errors import RecipeError, SmscaleError
from smscale.places import Place, given, is_remote
from smscale.redaction import redacted

STAGES = ("ingest", "match", "train", "downscale", "fuse", "evaluate")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code: 0 done, 2 bad input or recipe, 1 a fault, 130 or 143 stopped by a signal."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--log=json" in words or ("--log", "json") in pairwise(words)
    options = _parser(_JsonParser if as_json else argparse.ArgumentParser).parse_args(words)
    try:
        with _told_to_stop(), _others_as_json() if as_json else nullcontext():
            return int(options.command(options))
    except SmscaleError as error:
        _complain(redacted(" ".join(str(error).split())), error.exit_code, as_json, type(error).__name__)
        return error.exit_code
    except KeyboardInterrupt as error:
        code = 128 + (signal.SIGTERM if str(error) == signal.SIGTERM.name else signal.SIGINT)
        _complain("stopped; the same command goes on where it stopped", code, as_json, str(error) or "SIGINT")
        return code
    except BrokenPipeError:
        return 1
    except Exception as error:
        if not as_json:
            raise
        _complain(" ".join(str(error).split()), 1, as_json, type(error).__name__, traceback=traceback.format_exc())
        return 1


def _complain(message: str, code: int, as_json: bool, kind: str, **more: str) -> None:
    """One line on stderr."""
    if not as_json:
        sys.stderr.write(f"smscale: {message}\n")
        return
    from smscale.observe.lines import tell

    tell(sys.stderr, "error", error=kind, message=message, exit_code=code, **more)


@contextmanager
def _told_to_stop() -> Iterator[None]:
    """SIGTERM, as Slurm and Kubernetes send it, ends a command as Ctrl-C does: workers are ended, and the record says so."""

    def stop(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _others_as_json() -> Iterator[None]:
    """What Python warns of and what libraries log, as lines of JSON."""
    from smscale.observe.lines import tell

    def show(message: Warning | str, category: type[Warning], *where: object, **more: object) -> None:
        tell(sys.stderr, "warning", warning=category.__name__, message=" ".join(str(message).split()))

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tell(sys.stderr, "log", logger=record.name, level=record.levelname, message=record.getMessage())

    handler = Handler(logging.WARNING)
    handler.addFilter(lambda record: not record.name.startswith("distributed"))  # what matters of it is told otherwise
    logging.getLogger().addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show  # type: ignore[assignment]
            yield
    finally:
        logging.getLogger().removeHandler(handler)


class _JsonParser(argparse.ArgumentParser):
    """Says what is wrong with a command in a line of JSON, as every other error."""

    def error(self, message: str) -> NoReturn:
        _complain(message, 2, True, "UsageError")
        self.exit(2)


def entry() -> None:
    """Console entry point."""
    sys.exit(main())


def _parser(kind: type[argparse.ArgumentParser] = argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser = kind(prog="smscale", description="36 km SMAP soil moisture to 1 km maps, merged with stations.")
    parser.add_argument("--version", action="version", version=f"smscale {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        _add_init,
        _add_fetch,
        _add_plan,
        _add_run,
        _add_simulate,
        _add_inspect,
        _add_verify,
        _add_export,
        _add_certificates,
        add_bench,
    ):
        add(commands)
    return parser


def _add_init(commands: Any) -> None:
    init = commands.add_parser("init", help="write a recipe for a region and a period")
    init.add_argument("name", help="name of the recipe, and of its results")
    init.add_argument(
        "--region", required=True, metavar="W,S,E,N", help="degrees (--region=-105,… if west), or a GeoJSON outline"
    )
    init.add_argument("--period", required=True, metavar="START,END", help="local days, as 2017-06-10,2017-11-30")
    init.add_argument("--step", type=float, default=0.01, help="fine grid, degrees (default: 0.01)")
    init.add_argument("--inputs", metavar="FOLDER", help="folder of the raw files (default: raw/NAME)")
    init.add_argument("--out", metavar="FILE", help="the recipe to write (default: NAME.yaml)")
    init.add_argument("--force", action="store_true", help="write over a file that is there")
    init.set_defaults(command=_init)


def _add_fetch(commands: Any) -> None:
    fetch = commands.add_parser("fetch", help="download the raw files that a recipe lacks")
    fetch.add_argument("recipe", help="a YAML recipe with `inputs:`")
    fetch.add_argument("--into", metavar="FOLDER", help="where files go (default: the recipe's inputs)")
    fetch.add_argument("--dry-run", action="store_true", help="only say what is missing and what it would cost")
    fetch.add_argument("--jobs", type=int, default=4, help="downloads at a time (default: 4)")
    fetch.add_argument("--dem", choices=("copernicus", "aster"), default="copernicus", help="source of elevation")
    _add_settings(fetch)
    _add_progress(fetch)
    fetch.set_defaults(command=_fetch)


def _add_plan(commands: Any) -> None:
    plan = commands.add_parser("plan", help="what a run will need: blocks, files, bytes, memory, time")
    plan.add_argument("recipe", help="a YAML recipe")
    plan.add_argument("--workers", type=int, metavar="N", help="workers to reckon with (default: as a run here has)")
    plan.add_argument(
        "--stations", type=int, metavar="N", help="stations to reckon with (default: the world's, or 100)"
    )
    plan.add_argument(
        "--samples",
        type=int,
        metavar="N",
        help="training samples to reckon with (default: the paper's share of the coarse cells)",
    )
    plan.add_argument("--no-what-if", action="store_true", help="the recipe alone, not also a country and the globe")
    plan.add_argument("--calibrate", action="store_true", help="measure this machine again")
    plan.add_argument(
        "--scheduler",
        action="store_true",
        help="run the largest plan's blocks, a million at most, empty, and say what they took",
    )
    plan.add_argument("--json", action="store_true", help="as JSON")
    _add_settings(plan)
    _add_progress(plan)
    plan.set_defaults(command=_plan)


def _add_run(commands: Any) -> None:
    run = commands.add_parser("run", help="run a recipe: raw files in, maps and report out")
    run.add_argument("recipe", help="a YAML recipe, as pipelines/demo.yaml")
    run.add_argument(
        "--workspace", metavar="W", help="where results go: a folder or s3://bucket/prefix (default: runs/NAME)"
    )
    _add_cluster(run)
    run.add_argument("--only", choices=STAGES, metavar="STAGE", help=f"just this stage: {', '.join(STAGES)}")
    _add_settings(run)
    run.add_argument("--fresh", action="store_true", help="forget what an earlier run finished")
    _add_progress(run)
    _add_log(run)
    run.set_defaults(command=_run)


def _add_simulate(commands: Any) -> None:
    simulate = commands.add_parser("simulate", help="write a nature run: product files with the 1 km truth beside them")
    simulate.add_argument("world", help="a YAML world, as pipelines/worlds/demo.yaml")
    simulate.add_argument("out", help="the folder, or s3://bucket/prefix, to write")
    _add_cluster(simulate)
    _add_progress(simulate)
    _add_log(simulate)
    simulate.set_defaults(command=_simulate)


def _add_inspect(commands: Any) -> None:
    inspect = commands.add_parser("inspect", help="what a workspace holds: arrays, sizes, coverage by month")
    inspect.add_argument("workspace", help="the folder, or s3://bucket/prefix, of a run")
    inspect.add_argument("--json", action="store_true", help="as JSON")
    inspect.add_argument("--quick", action="store_true", help="without reading the data: no coverage by month")
    _add_progress(inspect)
    inspect.set_defaults(command=_inspect)


def _add_verify(commands: Any) -> None:
    verify = commands.add_parser("verify", help="check every finished block against its checksum")
    verify.add_argument("workspace", help="the folder, or s3://bucket/prefix, of a run")
    verify.add_argument("--repair", action="store_true", help="let the next run do the damaged blocks again")
    _add_progress(verify)
    verify.set_defaults(command=_verify)


def _add_export(commands: Any) -> None:
    export = commands.add_parser("export", help="maps or predictors as GeoTIFF, NetCDF, or CSV at points and polygons")
    export.add_argument("workspace", help="the folder, or s3://bucket/prefix, of a run")
    export.add_argument("--what", required=True, metavar="NAME", help="a map or predictor; final is the final map")
    export.add_argument("--format", choices=("geotiff", "netcdf", "csv"), default="geotiff", help="(default: geotiff)")
    export.add_argument("--period", metavar="START,END", help="local days, both included")
    export.add_argument("--region", metavar="W,S,E,N", help="degrees (--region=-105,… if west)")
    export.add_argument("--points", metavar="FILE", help="CSV with id, lon, lat (for csv)")
    export.add_argument("--polygons", metavar="FILE", help="GeoJSON (for csv)")
    export.add_argument(
        "--out",
        metavar="FOLDER",
        help="where files go (default: W/exports/NAME; of an s3:// workspace under the current folder)",
    )
    _add_progress(export)
    export.set_defaults(command=_export)


def _add_certificates(commands: Any) -> None:
    make = commands.add_parser("certificates", help="make an authority and a certificate for a cluster that speaks TLS")
    make.add_argument("folder", help="where ca.pem, host.pem and their keys go; it must be safe from others")
    make.add_argument("--days", type=int, default=30, help="of validity (default: 30)")
    make.add_argument(
        "--host", action="append", default=[], metavar="NAME", help="a host's name or address to write in"
    )
    make.set_defaults(command=_certificates)


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    where = "local (default), slurm, kubernetes, a profile's name or file, tcp://host:port, tls://host:port, or none"
    parser.add_argument("--cluster", default="local", metavar="WHERE", help=where)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    what = "replace a value of the recipe, as fusion.holdout=0.2"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=what)


def _add_progress(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _add_log(parser: argparse.ArgumentParser) -> None:
    how = "progress on stderr: plain lines, json (one object a line), or auto: bars on a terminal, else plain (default)"
    parser.add_argument("--log", choices=("auto", "plain", "json"), default="auto", help=how)
    where = "serve metrics for Prometheus, as 9108 (this machine alone) or 0.0.0.0:9108"
    parser.add_argument("--metrics", metavar="[HOST:]PORT", help=where)


def _bars(options: argparse.Namespace) -> bool:
    """Whether progress is shown as bars: they rewrite their line, which only a terminal can."""
    return not options.quiet and getattr(options, "log", "auto") == "auto" and sys.stderr.isatty()


def _run(options: argparse.Namespace) -> int:
    from smscale import config, pipeline
    from smscale.workspace import Workspace

    recipe = config.read(options.recipe, options.set)
    workspace = Workspace.at(_absolute(options.workspace or f"runs/{recipe.name}"))
    with _sinks(options) as sinks:
        pipeline.run(
            recipe,
            workspace,
            cluster=None if options.cluster == "none" else options.cluster,
            only=options.only,
            fresh=options.fresh,
            progress=_bars(options),
            say=sys.stdout.write,
            sinks=sinks,
        )
    return 0


@contextmanager
def _sinks(options: argparse.Namespace) -> Iterator[list[Any]]:
    """Who is told of a run as the options ask for it; the address of its metrics is told at once."""
    from smscale.observe.lines import JsonLines, Lines, tell
    from smscale.observe.metrics import served

    as_json = options.log == "json"
    with ExitStack() as stack:
        sinks: list[Any] = []
        if not options.quiet and not _bars(options):
            sinks.append(JsonLines(sys.stderr) if as_json else Lines(sys.stderr))
        if options.metrics:
            metrics, address = stack.enter_context(served(options.metrics))
            sinks.append(metrics)
            if as_json:
                tell(sys.stderr, "metrics", address=address)
            else:
                sys.stdout.write(f"metrics    {address}\n")
        yield sinks


def _absolute(where: str) -> Place:
    """A folder by its whole path, or what an s3:// URL names."""
    found = given(where)
    return found.absolute() if isinstance(found, Path) else found


def _folder(where: str | None, option: str) -> Path | None:
    """A folder of this machine, where one is named."""
    if where is not None and is_remote(where):
        raise RecipeError(f"{option} {where}: expected a folder of this machine; copy to the object store from there")
    return Path(where) if where else None


def _plan(options: argparse.Namespace) -> int:
    from smscale import config, planning

    found = planning.plan(
        config.read(options.recipe, options.set),
        stations=options.stations,
        workers=options.workers,
        samples=options.samples,
        what_if=not options.no_what_if,
        again=options.calibrate,
        scheduler=options.scheduler,
        progress=_bars(options),
        say=sys.stderr.write,
    )
    sys.stdout.write(found.json if options.json else found.text)
    return 0


def _simulate(options: argparse.Namespace) -> int:
    from smscale import pipeline

    with _sinks(options) as sinks:
        pipeline.simulate(
            Path(options.world),
            _absolute(options.out),
            cluster=None if options.cluster == "none" else options.cluster,
            progress=_bars(options),
            say=sys.stdout.write,
            sinks=sinks,
        )
    return 0


def _init(options: argparse.Namespace) -> int:
    from smscale.pipeline.init import init

    where = {"step": options.step, "inputs": options.inputs, "out": options.out, "force": options.force}
    init(options.name, options.region, options.period, **where, say=sys.stdout.write)
    return 0


def _fetch(options: argparse.Namespace) -> int:
    from smscale import config
    from smscale.pipeline.fetch import fetch

    return fetch(
        config.read(options.recipe, options.set),
        _folder(options.into, "--into"),
        dry_run=options.dry_run,
        jobs=options.jobs,
        dem=options.dem,
        progress=_bars(options),
        say=sys.stdout.write,
    ).exit_code


def _inspect(options: argparse.Namespace) -> int:
    import json

    from smscale.inspect import inspect
    from smscale.workspace import open_workspace

    facts = inspect(open_workspace(options.workspace), quick=options.quick, progress=_bars(options))
    sys.stdout.write(json.dumps(facts.to_dict(), indent=1) + "\n" if options.json else facts.text)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from smscale.verify import repair, verify
    from smscale.workspace import open_workspace

    workspace = open_workspace(options.workspace)
    found = verify(workspace, progress=_bars(options))
    sys.stdout.write(found.text)
    if options.repair and found.defects:
        sys.stdout.write(repair(workspace, found).text)
    return found.exit_code


def _export(options: argparse.Namespace) -> int:
    from smscale import exports
    from smscale.workspace import open_workspace

    done = exports.export(
        open_workspace(options.workspace),
        options.what,
        options.format,
        out=_folder(options.out, "--out"),
        period=options.period,
        region=options.region,
        points=options.points,
        polygons=options.polygons,
        progress=_bars(options),
    )
    sys.stdout.write(done.text)
    return 0


def _certificates(options: argparse.Namespace) -> int:
    from smscale.cluster import certificates

    made = certificates.make(Path(options.folder).absolute(), options.days, options.host)
    sys.stdout.write(
        f"certificates for {options.days} days, the same files for scheduler, workers and client:\n"
        f"tls: {{ca: {made.ca}, cert: {made.cert}, key: {made.key}}}\n"
    )
    return 0


if __name__ == "__main__":
    entry()
