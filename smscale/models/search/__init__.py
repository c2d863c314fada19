"""Hyper-parameter search on inner folds: `trials` by grid or at random, `hyperband`, and `Searched`, which is an estimator."""

from __future__ import annotations

from smscale.models.search.searched import Searched

__all__ = ["Searched"]
