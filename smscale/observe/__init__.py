"""What a run does, told as it happens: lines, metrics, a record in the workspace.

The engine counts blocks (`smscale.progress`); an `Observer` sorts them under the stages of a run and tells its sinks.
Nothing here knows what a stage does, and nothing of it grows with the number of blocks.
"""

from smscale.observe.machine import about_machine, versions
from smscale.observe.observer import Observer, Sink, Stage
from smscale.observe.record import Record

__all__ = ["Observer", "Record", "Sink", "Stage", "about_machine", "versions"]
