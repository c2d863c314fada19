"""`python -m smscale` is the command line."""

from smscale.cli import entry

entry()
