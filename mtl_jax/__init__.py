"""One small vision network for many tasks: multi-task and continual learning in JAX."""

__version__ = "0.1.0"
