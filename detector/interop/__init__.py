"""Weights of other packages, read and written."""
