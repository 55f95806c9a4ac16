"""Balancing of tasks: Optax transforms that turn one gradient per task into one update."""

from collections.abc import Callable

import optax

from mtl_jax.balance.aggregate import equal_mean, equal_sum, fixed, mgda, pcgrad

METHODS: dict[str, Callable[..., optax.GradientTransformationExtraArgs]] = {
    "sum": equal_sum,
    "mean": equal_mean,
    "fixed": fixed,
    "pcgrad": pcgrad,
    "mgda": mgda,
}

__all__ = ["METHODS", "equal_mean", "equal_sum", "fixed", "mgda", "pcgrad"]
