"""Operations of a model, counted in a traced function: what MFU divides by (PaLM, arXiv:2204.02311, appendix B).

Counted are matrix products and convolutions, two operations a multiply-add, those of the backward pass too. Not counted
is what rematerialisation computes a second time: the same model needs it only for lack of memory. A scan counts as
often as it runs; of a `cond` the dearest branch; a `while` once. The count is of the whole program, whatever devices
it is spread over, and no compiler has changed it.
"""

from __future__ import annotations

import math
from typing import Any, Iterator

_AGAIN = "rematted_computation"  # jax's name for the second computation in a backward pass


def _dot(equation: Any) -> float:
    (contracting, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[d] for d in contracting)


def _convolution(equation: Any) -> float:
    kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"]
    taps = math.prod(kernel[d] for d in numbers.rhs_spec[1:])  # input channels of a group, and the window
    out, image = equation.outvars[0].aval, equation.invars[0].aval.shape
    full = 2.0 * math.prod(out.shape) * taps
    dilation = equation.params["lhs_dilation"]  # of a transposed convolution: most taps meet inserted zeros
    real = math.prod(image[d] for d in numbers.lhs_spec[2:])
    padded = math.prod((image[d] - 1) * s + 1 for d, s in zip(numbers.lhs_spec[2:], dilation))
    return full * real / padded


def _inner(equation: Any) -> Iterator[tuple[Any, float]]:
    """(jaxpr, how often it runs) of those an equation holds."""
    name, params = equation.primitive.name, equation.params
    if name == "cond":
        yield max(params["branches"], key=count), 1.0
        return
    times = float(params["length"]) if name == "scan" else 1.0
    for value in params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(part, "eqns") or hasattr(part, "jaxpr"):
                yield part, times


def count(jaxpr: Any) -> float:
    """Operations of a (closed) jaxpr, as of `jax.jit(f).trace(...).jaxpr`."""
    total = 0.0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if _AGAIN in str(equation.source_info.name_stack):
            continue
        if equation.primitive.name == "dot_general":
            total += _dot(equation)
        elif equation.primitive.name == "conv_general_dilated":
            total += _convolution(equation)
        else:
            total += sum(times * count(inner) for inner, times in _inner(equation))
    return total
