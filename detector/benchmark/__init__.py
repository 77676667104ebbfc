"""Measures the ops beside what others offer, and what the kernels need of a card."""
