"""AdamW or Muon with warm-up, clipping and a decay mask; the moving average of the parameters.

    lr(t) = peak * (t + 1) / (warmup + 1)                                                   t < warmup
    lr(t) = peak * (r + (1 - r) (1 + cos(pi (t - warmup) / (num_steps - warmup))) / 2)      cosine, r = min_lr_ratio

t counts finished steps, so the very first step already moves. The paper publishes no recipe; all of this is ours.
Muon is `muon`'s, with the same learning rate and decay.
"""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import optax

from nuwaxl_jax import partitioning
from nuwaxl_jax.training import muon

OPTIMIZERS = ("adamw", "muon")
# Leaves that are never decayed, whatever their shape.
_NO_DECAY = re.compile(r"(^|/)(bias|scale|positions|[a-z_]*embed(ding)?s?)$")


def curve(settings: Any) -> dict[str, Any]:
    """The arguments of `make_schedule` in config.train.<stage>."""
    names = ("learning_rate", "num_steps", "warmup_steps", "lr_schedule", "min_lr_ratio")
    return {name: settings[name] for name in names}


def make_schedule(
    *,
    learning_rate: float,
    num_steps: int,
    warmup_steps: int = 0,
    lr_schedule: str = "cosine",
    min_lr_ratio: float = 0.0,
) -> optax.Schedule:
    """step -> learning rate, see the module.

    Raises:
      ValueError: an unknown lr_schedule, or a ratio outside [0, 1].
    """
    if lr_schedule not in _DECAYS:
        raise ValueError(f"lr_schedule {lr_schedule!r} is unknown; choose one of {sorted(_DECAYS)}.")
    if not 0 <= min_lr_ratio <= 1:
        raise ValueError(f"min_lr_ratio is {min_lr_ratio}; it must lie in [0, 1].")
    decay = _DECAYS[lr_schedule]

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        warm = (step + 1) / (warmup_steps + 1)
        progress = jnp.clip((step - warmup_steps) / max(num_steps - warmup_steps, 1), 0, 1)
        return learning_rate * jnp.where(step < warmup_steps, warm, decay(progress, min_lr_ratio))

    return schedule


def decay_mask(params: Any, no_decay: str = "") -> Any:
    """True for the leaves that weight decay shrinks: kernels of two or more dimensions.

    Biases, norm scales, embeddings, every vector, and paths in which the pattern `no_decay` occurs are left alone.
    """

    def decayed(path, leaf):
        name = partitioning.path_name(path)
        return leaf.ndim >= 2 and not _NO_DECAY.search(name) and not (no_decay and re.search(no_decay, name))

    return jax.tree_util.tree_map_with_path(decayed, params)


def make_optimizer(
    *,
    optimizer: str = "adamw",
    learning_rate: float,
    num_steps: int,
    warmup_steps: int = 0,
    lr_schedule: str = "cosine",
    min_lr_ratio: float = 0.0,
    weight_decay: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
    grad_clip: float = 1.0,
    no_decay: str = "",
    new_layers: str = "",
    pretrained_lr_ratio: float = 1.0,
    trainable: str = "",
    mesh: Mesh | None = None,
) -> optax.GradientTransformation:
    """AdamW or Muon after clipping by the global norm.

    Args:
      optimizer: 'adamw' or 'muon', see the module.
      learning_rate: the peak.
      num_steps: of the whole stage; where the cosine ends.
      warmup_steps: of linear warm-up.
      lr_schedule: 'cosine' or 'constant'.
      min_lr_ratio: the cosine ends at learning_rate * min_lr_ratio.
      weight_decay: decoupled, times the learning rate, on `decay_mask` alone.
      b1: decay of the first moment.
      b2: decay of the second moment.
      grad_clip: largest global norm of a gradient; 0 leaves gradients alone.
      no_decay: pattern of further paths that are not decayed.
      new_layers: pattern of the paths that learn at the full rate.
      pretrained_lr_ratio: learning rate of all other paths, over theirs.
      trainable: pattern of the paths that learn, all others stay as they are and have no optimiser state; '' is all,
        'new' those of `new_layers`.
      mesh: whose devices share Muon's work.

    Raises:
      ValueError: an unknown optimizer, and as `make_schedule`.
    """
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer {optimizer!r} is unknown; choose one of {OPTIMIZERS}.")
    schedule = make_schedule(
        learning_rate=learning_rate,
        num_steps=num_steps,
        warmup_steps=warmup_steps,
        lr_schedule=lr_schedule,
        min_lr_ratio=min_lr_ratio,
    )
    direction = optax.scale_by_adam(b1, b2)
    if optimizer == "muon":
        parts = {"muon": muon.scale_by_muon(mesh), "adamw": direction}
        direction = optax.partition(parts, functools.partial(muon.labels, kept=_NO_DECAY))
    mask = functools.partial(decay_mask, no_decay=no_decay)
    decayed = optax.add_decayed_weights(weight_decay, mask)
    update = optax.chain(direction, decayed, optax.scale_by_learning_rate(schedule))
    update = optax.chain(update, _slow_down(new_layers, pretrained_lr_ratio))
    update = optax.chain(optax.clip_by_global_norm(grad_clip), update) if grad_clip > 0 else update
    if not trainable:
        return update
    pattern = learning_pattern(trainable, new_layers)
    return optax.partition({True: update, False: optax.set_to_zero()}, functools.partial(learns, pattern=pattern))


def learning_pattern(trainable: str, new_layers: str) -> str:
    """The pattern of the paths that learn, of `train.<stage>.trainable`; '' is all."""
    return new_layers if trainable == "new" else trainable


def learns(params: Any, pattern: str) -> Any:
    """True for the leaves in whose path `pattern` occurs.

    Raises:
      ValueError: it occurs in none.
    """
    found = jax.tree_util.tree_map_with_path(
        lambda path, _: bool(re.search(pattern, partitioning.path_name(path))), params
    )
    if not any(jax.tree.leaves(found)):
        raise ValueError(f"trainable: {pattern!r} is in no parameter's path; see the parameter table")
    return found


def _slow_down(new_layers: str, ratio: float) -> optax.GradientTransformation:
    """Multiplies the updates of the paths in which `new_layers` does not occur."""

    def one(path, update):
        return update if re.search(new_layers, partitioning.path_name(path)) else ratio * update

    return optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(one, updates))


def ema_decay(step: jax.Array, limit: float) -> jax.Array:
    """min(limit, (1 + t) / (10 + t)) with t the finished steps: early averages forget the initialisation."""
    step = jnp.asarray(step, jnp.float32)
    return jnp.minimum(limit, (1 + step) / (10 + step))


def update_ema(ema: Any, params: Any, decay: jax.Array) -> Any:
    """decay * ema + (1 - decay) * params, float32."""
    return jax.tree.map(lambda e, p: e + (1 - decay) * (p.astype(e.dtype) - e), ema, params)


_DECAYS = {
    "cosine": lambda progress, ratio: ratio + (1 - ratio) * 0.5 * (1 + jnp.cos(math.pi * progress)),
    "constant": lambda progress, ratio: jnp.ones_like(progress),
}
