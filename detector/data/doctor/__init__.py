"""Examines datasets for what spoils a training or an evaluation without stopping it."""
