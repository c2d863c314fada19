"""The rules: which codecs and engines a quick screen leaves in, and which strategy is recommended."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

Key = TypeVar("Key")

#: How much each access pattern counts: half of it those of the cube, among them the two passes that every run makes twice the
#: others; half those of the maps, which have the same chunks and are most of a workspace's bytes: written by every run, read by people.
WEIGHTS = {
    "map": 1.0,
    "season": 1.0,
    "upscale": 2.0,
    "inference": 2.0,
    "append": 1.0,
    "maps": 3.0,
    "maps day": 2.0,
    "maps season": 2.0,
}
#: Files that a GB of values may have: fewer than a MB each, and copying, listing and object stores pay for every one.
MOST_FILES = 1000
#: A strategy may take so many times the bytes of the smallest.
MOST_BYTES = 1.5
#: What changes a choice must be better by this share: less is within the noise of a machine with other work.
MARGIN = 0.1


def left_in(candidates: Mapping[Key, Sequence[float]], ours: Key) -> Key | None:
    """The candidate that a screen leaves in; None where none is better than ours by `MARGIN`.

    Parameters
    ----------
    candidates : name -> what it costs (bytes, CPU seconds to write, to read all, a season); the geometric mean of the ratios to ours decides
    """
    means = {name: mean_ratio(costs, candidates[ours]) for name, costs in candidates.items()}
    best = min(means, key=lambda name: means[name])
    return best if best != ours and means[best] <= 1 - MARGIN else None


@dataclass(frozen=True)
class Measured:
    """What was measured of one strategy.

    seconds : by pattern; None where it cannot be served
    files_per_gb : files of a GB of values; size : bytes on disk
    """

    name: str
    seconds: Mapping[str, float | None]
    files_per_gb: float
    size: int
    settable: bool = True
    lossless: bool = True


@dataclass(frozen=True)
class Choice:
    """A recommendation.

    excluded : strategy -> why it may not be chosen; keeps_own : whether it is what the recipe has
    """

    name: str
    reason: str
    excluded: Mapping[str, str] = field(default_factory=dict)
    keeps_own: bool = False


def slow_downs(measured: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """How many times as long as the best each strategy takes, by pattern, and under "mean" their weighted geometric mean.

    The best is that of the strategies that lose no value and serve every pattern: one that loses some may take less. Which of two
    strategies has the lesser mean does not depend on it. Only a strategy that serves every pattern has a mean.
    """
    whole = [_seconds(m) for m in measured if _serves(m) and m.lossless]
    best = {p: min((seconds[p] for seconds in whole), default=1.0) for p in WEIGHTS}
    found = {m.name: {p: s / best[p] for p, s in _seconds(m).items()} for m in measured}
    for m in measured:
        if _serves(m):
            found[m.name]["mean"] = _geometric_mean([found[m.name][p] for p in WEIGHTS], list(WEIGHTS.values()))
    return found


def recommend(measured: Sequence[Measured], own: str = "", settable: bool = True) -> Choice | None:
    """The strategy with the least mean of slow-downs, among those within the limits on files and bytes.

    Parameters
    ----------
    own : what the recipe has now; it stays unless another is better by `MARGIN`
    settable : only what a recipe can ask for; else everything that loses nothing

    Returns
    -------
    None where no strategy may be chosen
    """
    excluded, ratios = _excluded(measured, settable), slow_downs(measured)
    means = {name: found["mean"] for name, found in ratios.items() if name not in excluded}
    if not means:
        return None
    least = min(means, key=lambda name: means[name])
    name = own if own in means and means[own] * (1 - MARGIN) <= means[least] else least
    return Choice(name, _reason(name, least, ratios), excluded, name == own)


def _serves(m: Measured) -> bool:
    return all(m.seconds.get(p) is not None for p in WEIGHTS)


def _seconds(m: Measured) -> dict[str, float]:
    """By pattern that it serves; no less than a clock tells."""
    return {p: max(s, 1e-9) for p in WEIGHTS if (s := m.seconds.get(p)) is not None}


def _excluded(measured: Sequence[Measured], settable: bool) -> dict[str, str]:
    """Who may not be chosen, and why."""
    excluded = {}
    smallest = min((m.size for m in measured if m.lossless), default=0)
    for m in measured:
        if not _serves(m):
            excluded[m.name] = "no block of it fits the memory of a worker"
        elif settable and not m.settable:
            excluded[m.name] = "a recipe cannot ask for it"
        elif not m.lossless:
            excluded[m.name] = "it changes values"
        elif m.files_per_gb > MOST_FILES:
            excluded[m.name] = f"{m.files_per_gb:.0f} files a GB of values, more than {MOST_FILES}"
        elif m.size > MOST_BYTES * smallest:
            excluded[m.name] = f"{m.size / smallest:.2f} times the bytes of the smallest, more than {MOST_BYTES}"
    return excluded


def _reason(name: str, least: str, ratios: Mapping[str, Mapping[str, float]]) -> str:
    """One sentence: the mean, where it is best, where it pays."""
    found = ratios[name]
    first = [p for p in WEIGHTS if found[p] <= 1 + MARGIN]
    worst = max(WEIGHTS, key=lambda p: found[p])
    told = f"{found['mean']:.2f} times the best of each pattern in the weighted mean"
    told += f"; best or within {MARGIN:.0%} of it at {', '.join(first)}" if first else ""
    told += f"; {found[worst]:.1f} times the best at {worst}" if found[worst] > 1 + MARGIN else ""
    if name != least:
        told += f"; {least} has {ratios[least]['mean']:.2f}, which is not better by {MARGIN:.0%}"
    return told


def mean_ratio(costs: Sequence[float], ours: Sequence[float]) -> float:
    """Geometric mean of the ratios of some costs to ours."""
    return _geometric_mean([a / max(b, 1e-12) for a, b in zip(costs, ours, strict=True)])


def _geometric_mean(ratios: Sequence[float], weights: Sequence[float] | None = None) -> float:
    weights = weights or [1.0] * len(ratios)
    total = sum(w * math.log(max(r, 1e-12)) for r, w in zip(ratios, weights, strict=True))
    return math.exp(total / sum(weights))
