"""The nature run: a seeded world over any region and period, written as the files that a user would download.

`World` says what is asked for, `phases` what there is to do; docs/nature-run.md gives the equations.
"""

from smscale.simulate.run import phases
from smscale.simulate.spec import World

__all__ = ["World", "phases"]
