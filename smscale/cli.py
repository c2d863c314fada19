"""The command line: `smscale init | fetch | plan | run | simulate | inspect | verify | export | bench | certificates`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smscale import __version__
from smscale.bench.commands import add_bench
from smscale.errors import SmscaleError
from smscale.places import Place, place

STAGES = ("ingest", "match", "train", "downscale", "fuse", "evaluate")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code: 0 done, 2 bad input or recipe, 1 a fault."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except SmscaleError as error:
        sys.stderr.write(f"smscale: {' '.join(str(error).split())}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("smscale: stopped; the same command goes on where it stopped\n")
        return 130
    except BrokenPipeError:
        return 1


def entry() -> None:
    """Console entry point."""
    sys.exit(main())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="smscale", description="36 km SMAP soil moisture to 1 km maps, merged with stations."
    )
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
    _add_quiet(fetch)
    fetch.set_defaults(command=_fetch)


def _add_plan(commands: Any) -> None:
    plan = commands.add_parser("plan", help="what a run will need: blocks, files, bytes, memory, time")
    plan.add_argument("recipe", help="a YAML recipe")
    plan.add_argument("--workers", type=int, metavar="N", help="workers to reckon with (default: as a run here has)")
    plan.add_argument("--stations", type=int, metavar="N", help="stations to reckon with (default: 100)")
    plan.add_argument("--no-what-if", action="store_true", help="the recipe alone, not also a country and the globe")
    plan.add_argument("--calibrate", action="store_true", help="measure this machine again")
    plan.add_argument(
        "--scheduler", action="store_true", help="run the largest plan's blocks, empty, and say what they took"
    )
    plan.add_argument("--json", action="store_true", help="as JSON")
    _add_settings(plan)
    _add_quiet(plan)
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
    _add_quiet(run)
    run.set_defaults(command=_run)


def _add_simulate(commands: Any) -> None:
    simulate = commands.add_parser("simulate", help="write a nature run: product files with the 1 km truth beside them")
    simulate.add_argument("world", help="a YAML world, as pipelines/worlds/demo.yaml")
    simulate.add_argument("out", help="the folder, or s3://bucket/prefix, to write")
    _add_cluster(simulate)
    _add_quiet(simulate)
    simulate.set_defaults(command=_simulate)


def _add_inspect(commands: Any) -> None:
    inspect = commands.add_parser("inspect", help="what a workspace holds: arrays, sizes, coverage by month")
    inspect.add_argument("workspace", help="the folder, or s3://bucket/prefix, of a run")
    inspect.add_argument("--json", action="store_true", help="as JSON")
    inspect.add_argument("--quick", action="store_true", help="without reading the data: no coverage by month")
    _add_quiet(inspect)
    inspect.set_defaults(command=_inspect)


def _add_verify(commands: Any) -> None:
    verify = commands.add_parser("verify", help="check every finished block against its checksum")
    verify.add_argument("workspace", help="the folder, or s3://bucket/prefix, of a run")
    verify.add_argument("--repair", action="store_true", help="let the next run do the damaged blocks again")
    _add_quiet(verify)
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
    _add_quiet(export)
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


def _add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def _run(options: argparse.Namespace) -> int:
    from smscale import config, pipeline
    from smscale.workspace import Workspace

    recipe = config.read(options.recipe, options.set)
    workspace = Workspace.at(_absolute(options.workspace or f"runs/{recipe.name}"))
    say = sys.stdout.write
    pipeline.run(
        recipe,
        workspace,
        cluster=None if options.cluster == "none" else options.cluster,
        only=options.only,
        fresh=options.fresh,
        progress=not options.quiet,
        say=say,
    )
    return 0


def _absolute(where: str) -> Place:
    """A folder by its whole path, or what an s3:// URL names."""
    found = place(where)
    return found.absolute() if isinstance(found, Path) else found


def _plan(options: argparse.Namespace) -> int:
    from smscale import config, planning

    found = planning.plan(
        config.read(options.recipe, options.set),
        stations=options.stations,
        workers=options.workers,
        what_if=not options.no_what_if,
        again=options.calibrate,
        scheduler=options.scheduler,
        progress=not options.quiet,
        say=sys.stderr.write,
    )
    sys.stdout.write(found.json if options.json else found.text)
    return 0


def _simulate(options: argparse.Namespace) -> int:
    from smscale import pipeline

    pipeline.simulate(
        Path(options.world),
        _absolute(options.out),
        cluster=None if options.cluster == "none" else options.cluster,
        progress=not options.quiet,
        say=sys.stdout.write,
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
        Path(options.into) if options.into else None,
        dry_run=options.dry_run,
        jobs=options.jobs,
        dem=options.dem,
        progress=not options.quiet,
        say=sys.stdout.write,
    ).exit_code


def _inspect(options: argparse.Namespace) -> int:
    import json

    from smscale.inspect import inspect
    from smscale.workspace import open_workspace

    facts = inspect(open_workspace(options.workspace), quick=options.quick, progress=not options.quiet)
    sys.stdout.write(json.dumps(facts.to_dict(), indent=1) + "\n" if options.json else facts.text)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from smscale.verify import repair, verify
    from smscale.workspace import open_workspace

    workspace = open_workspace(options.workspace)
    found = verify(workspace, progress=not options.quiet)
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
        out=Path(options.out) if options.out else None,
        period=options.period,
        region=options.region,
        points=options.points,
        polygons=options.polygons,
        progress=not options.quiet,
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
