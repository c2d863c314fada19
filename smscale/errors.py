"""What smscale raises: one base exception, few subclasses.

Every message is one line that says what was wrong, where, what was expected and the fix.
The command line prints the message alone and exits with `exit_code`.
"""


class SmscaleError(Exception):
    """Base of every error that smscale raises on purpose."""

    exit_code = 1


class InputError(SmscaleError, ValueError):
    """A file, array or table that the user gave cannot be used as it is."""

    exit_code = 2


class ElsewhereError(InputError):
    """Data that are whole, yet lie somewhere else than where they are asked for."""


class RecipeError(SmscaleError, ValueError):
    """A recipe or a command-line value is wrong."""

    exit_code = 2


class StoreError(SmscaleError, RuntimeError):
    """A workspace is unfinished, altered or held by another run."""

    exit_code = 2


class Unreachable(SmscaleError, RuntimeError):
    """The object store refused, or did not answer: it says nothing about what lies there."""

    exit_code = 2


class TaskError(SmscaleError, RuntimeError):
    """A unit of work failed again and again: a fault, not the user's input."""
