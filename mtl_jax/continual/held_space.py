"""Spaces of inputs that kernels hold: their bases, projections out of them, and how a checkpoint keeps them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from mtl_jax.models.kernel_inputs import by_group, from_groups
from mtl_jax.models.patterns import path_of

ROUNDING = 1e-12  # of an energy, relative: what is left of it below this is the error of a sum in float64


Basis = Float[np.ndarray, "groups inputs _"]  # orthonormal columns; zeros fill up groups that hold fewer


class Held(NamedTuple):
    """Memory of gradient projection: the held input space of every kernel, and the other parameters that stay."""

    bases: dict[str, Basis]  # path of a kernel -> a basis of the space
    other_params: tuple[str, ...]  # paths of biases, batch norms and other parameters that the old tasks read


NOTHING = Held({}, ())


def extend(basis: Basis | None, covariance: Float[np.ndarray, "groups inputs inputs"], *, energy: float) -> Basis:
    """Adds the fewest directions with which a basis holds a share of the energy of what a kernel reads.

    With k directions more, it holds the energy that it held already and the k largest eigenvalues of what it did not.

    Args:
        basis: of the stages before; None for none.
        covariance: uncentred, of the kernel's inputs; its trace is their energy.
        energy: the share to hold, above 0 and up to 1. 1 holds all that was seen, to the precision of the covariance.

    Returns:
        The basis, whose first columns in each group are those given.

    References:
        Saha, Garg, Roy, "Gradient Projection Memory for Continual Learning", 2021, equations 5 to 9.
    """
    before = np.zeros((*covariance.shape[:2], 0)) if basis is None else basis
    covariance_64 = covariance.astype(np.float64)
    extended = [_extend_one(before[group], covariance_64[group], energy) for group in range(len(covariance_64))]
    widest = max(basis.shape[1] for basis in extended)
    return np.stack([np.pad(basis, ((0, 0), (0, widest - basis.shape[1]))) for basis in extended]).astype(np.float32)


def _extend_one(
    basis: Float[np.ndarray, "inputs padded"], covariance: Float[np.ndarray, "inputs inputs"], energy: float
) -> Float[np.ndarray, "inputs held"]:
    basis = basis[:, basis.any(axis=0)].astype(np.float64)
    projection = np.eye(len(covariance)) - basis @ basis.T
    residual = projection @ covariance @ projection
    eigenvalues, directions = np.linalg.eigh(residual)  # rising
    eigenvalues, directions = np.maximum(eigenvalues[::-1], 0.0), directions[:, ::-1]
    total = np.trace(covariance)
    captured = total - np.trace(residual) + np.cumsum(np.append(0.0, eigenvalues))
    count = int((captured < energy * total * (1 - ROUNDING)).sum())
    count = min(count, len(covariance) - basis.shape[1])
    if not count:
        return basis
    # Directions of little energy are orthogonal to the basis up to rounding only.
    new_basis = np.linalg.qr(np.hstack([basis, directions[:, :count]]))[0][:, basis.shape[1] :]
    return np.hstack([basis, new_basis])


def remember(
    held: Held,
    covariances: Mapping[str, Float[np.ndarray, "calls groups inputs inputs"]],
    other_paths: Iterable[str],
    *,
    energy: float,
) -> Held:
    """Returns the memory after one more stage.

    Each use that the stage's tasks make of a kernel, such as on each level of the neck, is held to the same share.

    Args:
        held: after the stages before.
        covariances: of what each kernel reads, by its path.
        other_paths: paths of the other parameters that the stage's tasks read.
        energy: the share that is held.
    """
    bases = dict(held.bases)
    for path, calls in covariances.items():
        for covariance in calls:
            bases[path] = extend(bases.get(path), covariance, energy=energy)
    nonempty = {path: basis for path, basis in bases.items() if basis.shape[-1]}
    return Held(nonempty, tuple(dict.fromkeys([*held.other_params, *other_paths])))


def project(updates: PyTree, bases: Mapping[str, Float[Array | np.ndarray, "groups inputs held"]]) -> PyTree:
    """Removes what of an update would change a kernel's outputs for inputs in the held space: u - U U^T u.

    Args:
        updates: of parameters.
        bases: by the paths of kernels; the other leaves stay as they are.

    References:
        Saha, Garg, Roy, "Gradient Projection Memory for Continual Learning", 2021, equation 8. There the gradient is
        projected, and plain gradient descent follows it; weight decay and Adam would leave the space again.
    """

    def projected(path: tuple, update: Array) -> Array:
        basis = bases.get(path_of(path))
        return update if basis is None else _outside(update, jnp.asarray(basis))

    return jax.tree_util.tree_map_with_path(projected, updates)


def _outside(update: Float[Array, "..."], basis: Float[Array, "groups inputs held"]) -> Float[Array, "..."]:
    matrices = by_group(update, basis.shape[0])
    exact = jax.lax.Precision.HIGHEST  # accelerators would round a product's factors to 8 or 11 bits
    projected = jnp.einsum("gih,gio->gho", basis, matrices, precision=exact)
    return from_groups(matrices - jnp.einsum("gih,gho->gio", basis, projected, precision=exact), update.shape)


def to_tree(held: Held) -> dict[str, np.ndarray]:
    """Everything as one array of bytes, for a checkpoint.

    Args:
        held: to be saved.

    Returns:
        {"npz": u8[bytes]}
    """
    archive = io.BytesIO()
    encoded_paths = np.frombuffer(json.dumps(held.other_params).encode(), np.uint8)
    np.savez(archive, allow_pickle=False, **held.bases, whole=encoded_paths)  # pyright: ignore[reportArgumentType]
    return {"npz": np.frombuffer(archive.getvalue(), dtype=np.uint8)}


def from_tree(tree: Mapping[str, Any]) -> Held:
    """The inverse of `to_tree`, exact; nothing is held where the tree is empty.

    Args:
        tree: as restored from a checkpoint.
    """
    if not tree:
        return NOTHING
    with np.load(io.BytesIO(np.asarray(tree["npz"]).tobytes()), allow_pickle=False) as archive:
        arrays = {path: archive[path] for path in archive.files}
    path_list = json.loads(arrays.pop("whole").tobytes().decode())
    return Held(arrays, tuple(path_list))
