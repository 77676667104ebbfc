"""Measures the ops beside what others offer, and what the kernels need of a card.

``python tools/benchmark.py`` or ``detector benchmark``; ``benchmarks/README.md`` says how to read
what it prints.
"""
