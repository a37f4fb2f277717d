"""What a network's backward pass keeps of its forward pass, and what it computes anew (arXiv:1604.06174).

    none      everything
    products  of a block its inputs and the results of its convolutions and linear maps; norms, activations and
              attention are computed anew, which is little work
    blocks    of a block its inputs alone; all of it is computed anew, about one forward pass more

No policy changes a parameter, its name or a result, and where no gradient is taken the compiled program is the same.
XLA:CPU finds the second computation equal to the first and keeps that instead: nothing is gained there
(experiments/speed/remat.md).
"""

from __future__ import annotations

from typing import Any, Sequence

import flax.linen as nn
import jax

_without_batch_dims = jax.checkpoint_policies.dots_with_no_batch_dims_saveable


def _save_products(primitive: Any, *args: Any, **params: Any) -> bool:
    """Whether to keep a result: convolutions and products without batch dimensions, so not attention's scores."""
    return primitive.name == "conv_general_dilated" or _without_batch_dims(primitive, *args, **params)


def wrap(module: type[nn.Module], policy: str, static_argnums: Sequence[int] = ()) -> type[nn.Module]:
    """The class `module` whose `__call__` keeps what `policy` says; give its instances their names.

    Args:
      static_argnums: arguments of `__call__` that are no arrays, self being 0.

    Raises:
      ValueError: an unknown policy.
    """
    if policy not in _POLICIES:
        raise ValueError(f"remat is {policy!r}; choose one of {', '.join(_POLICIES)}")
    if policy == "none":
        return module
    return nn.remat(module, static_argnums=tuple(static_argnums), policy=_POLICIES[policy])


_POLICIES = {"none": None, "products": _save_products, "blocks": None}
