"""Experiments as a whole: what a model costs in time, memory and operations, by part, and ablations with their tables.

The tools of this package: `tools/ablate.py` and `tools/benchmark.py`.
"""
