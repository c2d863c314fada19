"""Where maps come from: what their attributes say, the same in every run of the same recipe."""

from __future__ import annotations

from smscale import __version__
from smscale.config import Recipe
from smscale.workspace import Workspace

#: The paper, and what the method is named after.
PAPER = "Chen et al. (2023), Remote Sensing 15, 4451, doi:10.3390/rs15184451"


def provenance(recipe: Recipe, workspace: Workspace) -> dict[str, str]:
    """CF attributes of the maps: what was made from what, by which version."""
    source = "world" if recipe.world else "recovery" if recipe.recovery else "inputs"
    coarse = "synthetic SMAP retrievals of a nature run" if recipe.world else "SMAP retrievals"
    stages = {stage: workspace.finished(stage) for stage in ("ingest", "match", "train")}
    return {
        "source": f"{coarse} on 36 km EASE-Grid 2.0, downscaled with {', '.join(recipe.models)} by smscale {__version__}",
        "references": PAPER,
        "recipe": recipe.name,
        "made_from": f"{source}: {recipe.world or recipe.inputs or (recipe.recovery.file if recipe.recovery else '')}",
        "predictors": " ".join(recipe.predictors),
        **{f"{stage}_fingerprint": str(done["fingerprint"]) for stage, done in stages.items() if done},
    }
