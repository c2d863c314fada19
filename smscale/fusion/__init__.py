"""Stations into maps: variograms, interpolators, residuals and the ladder that joins them."""
