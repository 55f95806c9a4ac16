"""Task weights from the task losses: pure functions of the losses and of the state of earlier steps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

SMALLEST_LOSS = 1e-8  # below it, logarithms and quotients of losses take this


def uncertainty_objective(log_variances: Float[Array, " tasks"], losses: Float[Array, " tasks"]) -> Float[Array, ""]:
    """What the network and the tasks' log-variances minimise together: half of exp(-s) * loss + s, added up.

    References:
        Kendall, Gal, Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and
        Semantics", 2018.
    """
    return 0.5 * jnp.sum(jnp.exp(-log_variances) * losses + log_variances)


def imtl_l_objective(log_scales: Float[Array, " tasks"], losses: Float[Array, " tasks"]) -> Float[Array, ""]:
    """What the network and the tasks' log-scales minimise together: exp(s) * loss - s, added up.

    References:
        Liu, Li, Kuang, Xue, Chen, Yang, Liao, Zhang, "Towards Impartial Multi-task Learning", 2021 (IMTL-L).
    """
    return jnp.sum(jnp.exp(log_scales) * losses - log_scales)


def dwa_weights(
    last: Float[Array, " tasks"], before: Float[Array, " tasks"], *, temperature: float
) -> Float[Array, " tasks"]:
    """Dynamic weight average: tasks whose mean loss fell less from one epoch to the next weigh more; the sum is tasks.

    Args:
        last: mean losses of the last epoch.
        before: those of the epoch before it.
        temperature: of the softmax; larger is more even.

    References:
        Liu, Johns, Davison, "End-to-End Multi-Task Learning with Attention", 2019.
    """
    return last.shape[0] * jax.nn.softmax(last / jnp.maximum(before, SMALLEST_LOSS) / temperature)


def gls_weights(losses: Float[Array, " tasks"]) -> Float[Array, " tasks"]:
    """The gradient of the losses' geometric mean by each of them.

    References:
        Chennupati, Sistu, Yogamani, Rawashdeh, "MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss
        Strategy for Multi-Task Learning", 2019.
    """
    losses = jnp.maximum(losses, SMALLEST_LOSS)
    return jnp.exp(jnp.log(losses).mean()) / (losses.shape[0] * losses)


def stch_weights(
    losses: Float[Array, " tasks"], *, mu: float, ideal: float | Float[Array, " tasks"]
) -> Float[Array, " tasks"]:
    """The gradient of the smooth maximum of the losses, each a share 1 / tasks, by each of them.

    Args:
        losses: of the tasks.
        mu: of the smoothing; towards 0, the largest loss alone counts.
        ideal: what each loss could reach at best.

    References:
        Lin, Zhang, Yang, Liu, Wang, Zhang, "Smooth Tchebycheff Scalarization for Multi-Objective Optimization", 2024.
    """
    share = 1.0 / losses.shape[0]
    return share * jax.nn.softmax(share * (losses - ideal) / mu)


def famo_weights(logits: Float[Array, " tasks"], losses: Float[Array, " tasks"]) -> Float[Array, " tasks"]:
    """Weights of sum 1 under which the logarithms of the losses fall as softmax(logits) asks.

    References:
        Liu, Feng, Stone, Liu, "FAMO: Fast Adaptive Multitask Optimization", 2023.
    """
    weights = jax.nn.softmax(logits) / jnp.maximum(losses, SMALLEST_LOSS)
    return weights / weights.sum()


def famo_logit_gradient(
    logits: Float[Array, " tasks"], before: Float[Array, " tasks"], after: Float[Array, " tasks"]
) -> Float[Array, " tasks"]:
    """The direction against which FAMO moves its logits: away from tasks whose loss fell more than the others'."""
    fall = jnp.log(jnp.maximum(before, SMALLEST_LOSS)) - jnp.log(jnp.maximum(after, SMALLEST_LOSS))
    shares = jax.nn.softmax(logits)
    return shares * (fall - shares @ fall)


def gradnorm_objective(
    weights: Float[Array, " tasks"],
    lengths: Float[Array, " tasks"],
    losses: Float[Array, " tasks"],
    first_losses: Float[Array, " tasks"],
    *,
    alpha: float,
) -> Float[Array, ""]:
    """How far the weighted gradients' lengths are from the lengths that the tasks' rates of training ask for.

    In units of the mean weighted length, so that its gradient does not depend on the scale of the losses; that mean,
    and the requested lengths, count as constants.

    Args:
        weights: of the tasks.
        lengths: of the tasks' gradients, unweighted.
        losses: present.
        first_losses: of the first step.
        alpha: how strongly slow tasks are helped; 0 asks for equal lengths.

    References:
        Chen, Badrinarayanan, Lee, Rabinovich, "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep
        Multitask Networks", 2018.
    """
    ratios = losses / jnp.maximum(first_losses, SMALLEST_LOSS)
    rates = ratios / jnp.maximum(ratios.mean(), SMALLEST_LOSS)
    mean = jax.lax.stop_gradient((weights * lengths).mean())
    target_norms = mean * rates**alpha
    return jnp.abs(weights * lengths - target_norms).sum() / jnp.where(mean > 0, mean, 1.0)


def dtp_weights(performance: Float[Array, " tasks"], *, gamma: float) -> Float[Array, " tasks"]:
    """Dynamic task prioritisation: the focal weight of each task's performance, so that hard tasks count more.

    Args:
        performance: a running mean of each task's key performance indicator, between 0 and 1.
        gamma: of the focus.

    References:
        Guo, Haque, Huang, Yeung, Fei-Fei, "Dynamic Task Prioritization for Multitask Learning", 2018.
    """
    performance = jnp.clip(performance, SMALLEST_LOSS, 1.0)
    return -((1.0 - performance) ** gamma) * jnp.log(performance)
