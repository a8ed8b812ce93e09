"""Speed, as ratios of two things timed in turn in one run.

Deselected by default: `pytest tests/benchmarks -m benchmark -s`.
"""
