"""smscale."""
