"""`smscale plan`: what a run will need, before it is begun."""

from smscale.planning.forecast import WHAT_IF, Case, Estimate, Forecast, estimate, plan

__all__ = ["WHAT_IF", "Case", "Estimate", "Forecast", "estimate", "plan"]
