"""The recovery experiment: a real fine field is coarsened to 36 km, downscaled again, and scored against itself.

Its stages have the names and the manner of the others, and share `match` and `downscale` with them. Every model is fitted on
all coarse cells; which one is best is chosen by folds of space blocks at 36 km, never by the fine truth. Beside each model's
map stands its closure, map + cubic(coarse - upscaled map), which agrees with the coarse field again; nearest, bilinear and
cubic interpolation of the coarse field are what all of them must be compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from smscale.config import Recipe
from smscale.pipeline.downscale import downscale
from smscale.pipeline.match import match
from smscale.pipeline.plan import plan_of
from smscale.pipeline.recovery.closure import close
from smscale.pipeline.recovery.field import ingest
from smscale.pipeline.recovery.fits import train
from smscale.pipeline.recovery.plan import files_of, variants_of
from smscale.pipeline.recovery.report import evaluate
from smscale.pipeline.recovery.window import window_of
from smscale.pipeline.run import Run

Stage = Callable[[Run], dict[str, Any]]


def stages(recipe: Recipe) -> dict[str, Stage]:
    """The stages of a recovery recipe, in order.

    Raises
    ------
    RecipeError, InputError
        in one line, where files are missing or the window holds no whole coarse cell.
    """
    files = files_of(recipe)
    window = window_of(recipe, files.file)
    variants = variants_of(recipe)

    names = tuple(dict.fromkeys(n for v in variants.values() for n in v.predictors))
    wide = replace(recipe, models={n: v.settings for n, v in variants.items()}, predictors=names)
    plan = plan_of(wide, window)

    def widened(run: Run) -> Run:
        """The run as the shared stages see it: each variant a model, temperature a predictor."""
        return replace(run, recipe=wide)

    return {
        "ingest": lambda run: ingest(run, window, files),
        "match": lambda run: match(widened(run), window),
        "train": lambda run: train(run, variants),
        "downscale": lambda run: downscale(widened(run), window, plan, fusing=False),
        "fuse": lambda run: close(run, window, list(variants)),
        "evaluate": lambda run: evaluate(run, window, variants),
    }
