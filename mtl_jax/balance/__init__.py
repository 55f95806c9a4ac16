"""Balancing of tasks: Optax transforms that turn one gradient per task into one update."""

from collections.abc import Callable

import optax

from mtl_jax.balance.gradient_methods import db_mtl, excess_mtl, graddrop, moco, modo
from mtl_jax.balance.gramian_methods import (
    aligned_mtl,
    cagrad,
    config,
    fairgrad,
    imtl_g,
    mgda,
    nash_mtl,
    sdmgrad,
)
from mtl_jax.balance.learnt_weight_methods import famo, gradnorm, imtl_l, uncertainty
from mtl_jax.balance.loss_methods import dtp, dwa, gls, rlw, stch
from mtl_jax.balance.projection_methods import dual_proj, gradvac, pcgrad, upgrad
from mtl_jax.balance.scalarisation_methods import equal_mean, equal_sum, fixed, random
from mtl_jax.balance.transform import BalanceState, OnLosses, RemembersGradients, gramian

METHODS: dict[str, Callable[..., optax.GradientTransformationExtraArgs]] = {
    # on gradients
    "sum": equal_sum,
    "mean": equal_mean,
    "random": random,
    "pcgrad": pcgrad,
    "gradvac": gradvac,
    "graddrop": graddrop,
    "mgda": mgda,
    "cagrad": cagrad,
    "nash_mtl": nash_mtl,
    "fairgrad": fairgrad,
    "imtl_g": imtl_g,
    "aligned_mtl": aligned_mtl,
    "upgrad": upgrad,
    "dual_proj": dual_proj,
    "config": config,
    "sdmgrad": sdmgrad,
    "moco": moco,
    "modo": modo,
    "db_mtl": db_mtl,
    # on losses
    "fixed": fixed,
    "uncertainty": uncertainty,
    "imtl_l": imtl_l,
    "dwa": dwa,
    "gls": gls,
    "rlw": rlw,
    "stch": stch,
    "famo": famo,
    "gradnorm": gradnorm,
    "dtp": dtp,
    "excess_mtl": excess_mtl,  # judges by gradients how far a loss can still fall
}

__all__ = [
    "METHODS",
    "BalanceState",
    "OnLosses",
    "RemembersGradients",
    "aligned_mtl",
    "cagrad",
    "config",
    "db_mtl",
    "dtp",
    "dual_proj",
    "dwa",
    "equal_mean",
    "equal_sum",
    "excess_mtl",
    "fairgrad",
    "famo",
    "fixed",
    "gls",
    "graddrop",
    "gradnorm",
    "gradvac",
    "gramian",
    "imtl_g",
    "imtl_l",
    "mgda",
    "moco",
    "modo",
    "nash_mtl",
    "pcgrad",
    "random",
    "rlw",
    "sdmgrad",
    "stch",
    "uncertainty",
    "upgrad",
]
