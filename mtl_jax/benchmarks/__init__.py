"""Measurements of speed and memory, reproduced by `scripts/benchmark.py`; a PyTorch peer to compare with."""
