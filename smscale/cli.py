"""The command line: `smscale run RECIPE`, `smscale simulate WORLD OUT`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from smscale import __version__
from smscale.errors import RecipeError, SmscaleError

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

    run = commands.add_parser("run", help="run a recipe: raw files in, maps and report out")
    run.add_argument("recipe", help="a YAML recipe, as pipelines/demo.yaml")
    run.add_argument("--workspace", metavar="W", help="where results go (default: runs/NAME)")
    run.add_argument(
        "--cluster", default="local", metavar="WHERE", help="local (default), tcp://host:port or tls://host:port"
    )
    run.add_argument("--only", choices=STAGES, metavar="STAGE", help=f"just this stage: {', '.join(STAGES)}")
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace a value of the recipe, as fusion.holdout=0.2",
    )
    run.add_argument("--fresh", action="store_true", help="forget what an earlier run finished")
    run.add_argument("--quiet", action="store_true", help="no progress bars")
    run.set_defaults(command=_run)

    simulate = commands.add_parser("simulate", help="write a nature run: product files with the 1 km truth beside them")
    simulate.add_argument("world", help="a YAML world, as pipelines/worlds/demo.yaml")
    simulate.add_argument("out", help="the folder to write")
    simulate.add_argument(
        "--cluster", default="local", metavar="WHERE", help="local (default), tcp://host:port or tls://host:port"
    )
    simulate.add_argument("--quiet", action="store_true", help="no progress bars")
    simulate.set_defaults(command=_simulate)
    return parser


def _run(options: argparse.Namespace) -> int:
    from smscale import config, pipeline
    from smscale.workspace import Workspace

    if "://" in (options.workspace or ""):
        raise RecipeError(f"--workspace {options.workspace}: object stores are not supported yet; give a folder")
    recipe = config.read(options.recipe, options.set)
    workspace = Workspace(Path(options.workspace or f"runs/{recipe.name}").absolute())
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


def _simulate(options: argparse.Namespace) -> int:
    from smscale import pipeline

    pipeline.simulate(
        Path(options.world),
        Path(options.out).absolute(),
        cluster=None if options.cluster == "none" else options.cluster,
        progress=not options.quiet,
        say=sys.stdout.write,
    )
    return 0


if __name__ == "__main__":
    entry()
