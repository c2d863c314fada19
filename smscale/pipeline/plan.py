"""How the pass over the fine cube is cut into blocks: what a block holds at its peak, and the blocks that fit a worker.

The bytes are those of the arrays that live at once in `downscale`, `prediction`, `merging` and `solved`; tests hold the plan's
prediction against a measured peak.
"""

from __future__ import annotations

import math

from dask.utils import parse_bytes

from smscale import schema
from smscale.block_plan import PROCESS_BYTES, TORCH_BYTES, Cost, Plan, plan
from smscale.config import Recipe
from smscale.pipeline.layout import Layout
from smscale.pipeline.surroundings import patch_of
from smscale.workspace import COORDINATES

#: Steps of a block at most: neighbours are ranked once for all of them, which 32 steps of cloudy days do not pay back.
MOST_STEPS = 64
#: Bytes of float32 and of the status.
FLOAT, STATUS = 4, 4
#: Per cell and step while a model predicts: what is missing, what hides it, the first predictor hidden, values, status, the
#: values clipped to their bounds twice, and three masks.
PREDICTING = STATUS + FLOAT + FLOAT + FLOAT + STATUS + 2 * FLOAT + 3
#: The same while a map is fused: the model's values and status, two residual fields, fused values and status, the variance and what
#: it is multiplied by. A closed map adds its surface and itself.
MERGING = FLOAT + STATUS + 2 * FLOAT + FLOAT + STATUS + 3 * FLOAT
CLOSING = 2 * FLOAT + STATUS
#: Of stations, while a block is fused: per step and way for each of them, residuals, coefficients and copies of both, those of the
#: block before among them; and, while kriging variance is filled, per step for each pair of those that report or of those that do
#: not, whichever are fewer (half of them at most): a factor of their system.
STATION, PAIR = 72, 8
#: For each pair of merged stations, while a slab is solved by kriging from all: twelve matrices of their size in two threads.
SYSTEM = 12 * 8
#: What kernels work in, beside that, whatever the block: the widest tiles.
SCRATCH = 64 << 20
#: What a model takes in a worker: 300 unlimited trees of a season's samples, boosted ones, networks with their library's buffers.
MODEL_BYTES = {"rf": 128 << 20, "xgb": 32 << 20, "gabp": 8 << 20, "cnn": 16 << 20}


def plan_of(recipe: Recipe, layout: Layout, stations: int = 0) -> Plan:
    """The blocks of `downscale` and `fuse`; the same for every number of workers.

    `stations` are those of the cube, once it is known: the blocks of thousands are smaller.

    Raises
    ------
    RecipeError
        where one shard needs more than `resources.memory_per_worker`, with the shard that would fit.
    """
    sizes = {"time": layout.steps.sizes["time"], "lat": layout.grid.shape[0], "lon": layout.grid.shape[1]}
    memory = int(parse_bytes(recipe.resources.memory_per_worker))
    process = PROCESS_BYTES + TORCH_BYTES  # what training leaves loaded
    return plan(
        sizes,
        layout.chunks,
        layout.shards,
        cost_of(recipe) + station_cost(recipe, stations),
        memory,
        process=process,
        most_steps=MOST_STEPS,
        what="downscale and fuse",
    )


def cost_of(recipe: Recipe) -> Cost:
    """What a block holds at its peak."""
    names = {*recipe.predictors, "land_cover"}.difference(COORDINATES)
    still = {n for n in names if n in schema.VARIABLES and schema.VARIABLES[n].cadence == "static"}
    planes = FLOAT * len(names - still)
    maps = FLOAT * len(recipe.models)  # kept for their spread
    patch = max((patch_of(name, settings) for name, settings in recipe.models.items()), default=1)
    around = (
        (patch**2 - 1) * len(recipe.predictors) * 2
    )  # of one step: what a patch network sees, and where it is filled
    merging = MERGING + (CLOSING if recipe.closure != "none" else 0)
    return Cost(
        per_cell_step=max(planes + maps + PREDICTING, merging),
        per_cell=FLOAT * (len(still) + around),
        fixed=SCRATCH + sum(map(_model_bytes, recipe.models)),
    )


def station_cost(recipe: Recipe, stations: int) -> Cost:
    """What so many stations add to a block, and to a worker that solves their systems."""
    fusion = recipe.fusion
    ways = len(fusion.residuals) * len(fusion.interpolators)
    held = fusion.holdout if fusion.holdout_unit == "station" else 0.0
    merged = math.ceil((1 - held) * stations)
    systems = "kriging" in fusion.interpolators and fusion.neighbours is None
    factors = PAIR * (merged / 2) ** 2 if systems and fusion.variance else 0
    return Cost(per_step=STATION * ways * stations + factors, fixed=SYSTEM * merged**2 if systems else 0)


def _model_bytes(name: str) -> int:
    """Of a model, or of a variant of it, whose name begins with the model's."""
    return next((size for kind, size in MODEL_BYTES.items() if name.startswith(kind)), max(MODEL_BYTES.values()))
