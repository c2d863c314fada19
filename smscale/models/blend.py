"""How far networks may depart from a ridge regression, told by rows that neither trained them nor stopped them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from smscale.models.samples import Floats, Labels

#: What the scatter of single networks may explain, at most, of how far they depart from the ridge.
MOST_SCATTER = 0.9
#: Squared standard errors that a share must exceed to count: Akaike's price of a parameter. With one, networks that had
#: nothing to learn lost up to 2 % to the ridge; with two, half of that, for 0.5 % of error where there was much to learn.
PRICE = 2.0


class Blend(NamedTuple):
    """The model is (1 - share) ridge + share networks; mse is what its weighted mean squared error should then be."""

    share: float
    mse: float


def blend(
    estimates: Floats,
    ridge: Floats,
    y: Floats,
    weight: Floats,
    group: Labels,
    members: int,
    share: float | None = None,
) -> Blend:
    """The share in [0, 1] of a mean of networks that a squared error wants, less what may be chance.

    A row is judged by few of the networks whose mean predicts, so its estimate scatters more than that mean will. How the
    judges scatter about one another says by how much, and is taken off: with H their mean departure from the ridge and v
    the variance between them, s = sum w H (y - ridge) / sum w (H^2 - v (1 / judges - 1 / members)).
    It is shrunk as James and Stein do (1961, Estimation with quadratic loss, Proc. 4th Berkeley Symp. 1, 361): share =
    s max(0, 1 - PRICE / z^2), z being s over its standard error, for which a whole group counts as one observation (with
    G / (G - 1) for G of them; one observation says nothing, and the share is 0).

    Parameters
    ----------
    estimates : (r, n), NaN where a network must not judge a row
    ridge, y, weight, group : (n,), of rows that at least one network judges
    members : networks in the mean that predicts
    share : a share that is given, of which only the error is asked
    """
    departures = estimates - ridge
    known = np.isfinite(departures)
    judges = known.sum(axis=0)
    mean = np.where(known, departures, 0.0).sum(axis=0) / judges
    variance = (np.where(known, departures - mean, 0.0) ** 2).sum(axis=0) / np.maximum(judges - 1, 1)
    scatter = float(weight @ (variance * np.maximum(1.0 / judges - 1.0 / members, 0.0)))
    whole = float(weight @ mean**2)
    size = max(whole - scatter, (1.0 - MOST_SCATTER) * whole)
    left = y - ridge
    gain = float(weight @ (mean * left))
    if share is None:
        share = min(max(gain / size, 0.0), 1.0) if size > 0 else 0.0
        if gain * gain == 0:  # no departure worth its square
            share = 0.0
        if share > 0:
            unexplained = weight * mean * (left - share * size / whole * mean)
            share *= max(0.0, 1.0 - PRICE * _squared_error(_sums(group, unexplained)) / gain**2)
    mse = float(weight @ left**2) - 2.0 * share * gain + share * share * size
    return Blend(share, max(mse, 0.0) / float(weight.sum()))


def _squared_error(sums: Floats) -> float:
    """Squared standard error of the total of sums (g,) of a mean of 0; infinite where there is one."""
    return float(sums @ sums) * sums.size / (sums.size - 1) if sums.size > 1 else np.inf


def _sums(group: Labels, values: Floats) -> Floats:
    """Sums by group; of single rows where all are of one group."""
    labels, index = np.unique(group, return_inverse=True)
    return values if labels.size == 1 else np.bincount(index.ravel(), weights=values).astype(np.float64)
