"""Muon: momentum whose every kernel is replaced by its nearest orthogonal matrix (Jordan et al., 2024).

    m <- beta m + g,   u = g + beta m,   update = rms sqrt(max(rows, columns)) orthogonal(u)

with `orthogonal` five steps of the published Newton-Schulz iteration and rms = 0.2, the root mean square that AdamW's
updates have, so that one learning rate serves both (arXiv:2502.16982). Kernels are matrices from all they sum over
(inputs and taps) to what they make. Vectors, embeddings and positions keep AdamW.

`optax.contrib.muon` computes the same a kernel at a time: a loop of its own in the program for each of about a hundred
kernels, on every device. Here kernels of one matrix shape are stacked into one batched iteration, the stacks are shared
out over the devices of the mesh, and the iteration X <- p(X X') X runs on the small Gram matrix: with G = X X' every
step is X <- p(G) X, G <- p(G) G p(G), so the product of the p is gathered first and meets X once, at the end.

K matrices on N devices come back by gathering, the stack filled up to a multiple of N, or, where that would be more
than twice K, by summing: every device adds zeros for the matrices that are not its own.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
import optax

from nuwaxl_jax import partitioning

_RMS = 0.2
_MOMENTUM = 0.95
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of p(G) = a + b G + c G^2, as published
_STEPS = 5


def labels(params: Any, kept: Any) -> Any:
    """'muon' for kernels (two or more dimensions, path not matched by the pattern `kept`), 'adamw' for the rest."""

    def label(path, leaf):
        return "muon" if leaf.ndim >= 2 and not kept.search(partitioning.path_name(path)) else "adamw"

    return jax.tree_util.tree_map_with_path(label, params)


def _as_matrix(kernel: jax.Array) -> jax.Array:
    """[.., in, out] to [rows, columns] with rows <= columns."""
    matrix = kernel.reshape(-1, kernel.shape[-1])
    return matrix.T if matrix.shape[0] > matrix.shape[1] else matrix


def _from_matrix(matrix: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return (matrix.T if np.prod(shape[:-1]) > shape[-1] else matrix).reshape(shape)


def newton_schulz(x: jax.Array) -> jax.Array:
    """float32 [K, rows, columns], rows <= columns, to about the nearest orthogonal matrices."""
    a, b, c = _COEFFICIENTS
    x = x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + 1e-8)
    one = jnp.eye(x.shape[1], dtype=x.dtype)
    gram, product = x @ x.swapaxes(1, 2), jnp.broadcast_to(one, (x.shape[0], *one.shape))
    for step in range(_STEPS):
        p = a * one + b * gram + c * (gram @ gram)
        product = p @ product
        if step < _STEPS - 1:
            gram = p @ gram @ p
    return product @ x


def orthogonalise(kernels: list[jax.Array], mesh: Mesh | None = None) -> list[jax.Array]:
    """The nearest orthogonal matrix of each kernel [.., in, out], about: singular values end within 0.7 to 1.2.

    Args:
      kernels: of any shapes; those of one matrix shape are computed together.
      mesh: whose devices share the work; None leaves it where it is.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    matrices = [_as_matrix(kernel) for kernel in kernels]
    for i, matrix in enumerate(matrices):
        groups.setdefault(matrix.shape, []).append(i)
    out: list[Any] = [None] * len(kernels)
    for members in groups.values():
        stack = jnp.stack([matrices[i] for i in members])  # [K, rows, columns]
        if mesh is None or mesh.size == 1:
            stack = newton_schulz(stack)
        elif 2 * len(members) < mesh.size:  # a sum moves what it is of twice
            stack = _one_each(stack, mesh)
        else:
            stack = _shares(stack, mesh)
        for place, i in enumerate(members):
            out[i] = _from_matrix(stack[place], kernels[i].shape)
    return out


def _shares(stack: jax.Array, mesh: Mesh) -> jax.Array:
    """`newton_schulz` of [K, rows, columns], equal shares of the stack and its padding on every device; replicated."""
    spare = -len(stack) % mesh.size
    padded = jnp.pad(stack, ((0, spare), (0, 0), (0, 0)))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
    out = newton_schulz(jax.lax.with_sharding_constraint(padded, spread))
    return jax.lax.with_sharding_constraint(out, partitioning.replicate(mesh))


def _one_each(stack: jax.Array, mesh: Mesh) -> jax.Array:
    """The same for K < N devices: device i has matrix i, the others none; the sum over devices is exact."""

    def on_device(stack):
        place = jax.lax.axis_index(mesh.axis_names)
        own = jax.lax.dynamic_index_in_dim(stack, jnp.minimum(place, len(stack) - 1))  # [1, rows, columns]
        mine = (jnp.arange(len(stack)) == place)[:, None, None]
        return jax.lax.psum(jnp.where(mine, newton_schulz(own), 0.0), mesh.axis_names)

    everywhere = jax.sharding.PartitionSpec()
    return jax.shard_map(on_device, mesh=mesh, in_specs=everywhere, out_specs=everywhere)(stack)


def scale_by_muon(mesh: Mesh | None = None) -> optax.GradientTransformation:
    """Gradients of kernels to updates of root mean square about 0.2; the state is the momentum, shaped as they are."""

    def scaled(updates, params=None):
        del params
        leaves, tree = jax.tree.flatten(updates)
        factors = [_RMS * float(max(np.prod(x.shape[:-1]), x.shape[-1])) ** 0.5 for x in leaves]
        return tree.unflatten([f * x for f, x in zip(factors, orthogonalise(leaves, mesh))])

    return optax.chain(optax.trace(_MOMENTUM, nesterov=True), optax.stateless(scaled))
