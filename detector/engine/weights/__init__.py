"""Weights that a training begins with: where from, which fit, and what becomes of the others."""
