"""The paper's convolutional network: `estimator` fits, `layers` predicts, `patch` makes a patch's columns."""

from __future__ import annotations

from smscale.models.cnn.estimator import CNNPredictor, CNNRegressor, ReceptiveField, cnn_from_arrays, cnn_to_arrays

__all__ = ["CNNPredictor", "CNNRegressor", "ReceptiveField", "cnn_from_arrays", "cnn_to_arrays"]
