"""The objective of latent diffusion's autoencoders (arXiv:2112.10752, after VQGAN, arXiv:2012.09841), frame by frame.

    nll  = (rec(x, x') + w_p LPIPS(x, x')) / exp(s) + s                      rec a mean over pixel values
    g    = - mean D(x')
    loss = nll + kl_weight KL + w_g lambda g
    d    = (mean max(0, 1 - D(x)) + mean max(0, 1 + D(x'))) / 2              of the discriminator D alone
    lambda = min(|dnll/dW| / (|dg/dW| + 1e-4), 1e4 / P),  without gradient

with x' the reconstruction, s one number, the log-variance, W the kernel of the decoder's last convolution and P the
pixel values of a frame. The original sums over them where this averages, so its generator loss is P times this one,
term by term; hence 1e4 / P where it writes 1e4. Its optimiser leaves s at 0: `learned` is what its paper means.

Both players learn in the same step from the same x': D sees it without gradient, the autoencoder sees a fixed D. Before
step `gan_start` nothing of D is computed and it stays as initialised, optimiser included.

With gradients accumulated, lambda is each micro-batch's own.

s and D live in the train state's `extra`: checkpointed, but part neither of the parameters nor of their average, so no
exported weights hold them.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Callable, Mapping

import jax
import jax.numpy as jnp
import ml_collections
import optax

from nuwaxl_jax import config as config_lib
from nuwaxl_jax.models import discriminator as discriminator_lib
from nuwaxl_jax.models import lpips
from nuwaxl_jax.training import metrics
from nuwaxl_jax.training import optim

_EPSILON = 1e-4  # of lambda's denominator
_LARGEST = 1e4  # lambda, for sums over pixel values

Values = dict[str, metrics.Average]
LastLayer = tuple[Callable[[jax.Array], jax.Array], jax.Array]  # (W -> x', W), all else without gradient


def hinge(real: jax.Array, made: jax.Array) -> jax.Array:
    """The discriminator's loss, of its logits for real and for made patches."""
    return 0.5 * (jnp.mean(jax.nn.relu(1.0 - real)) + jnp.mean(jax.nn.relu(1.0 + made)))


def adaptive_weight(by_nll: jax.Array, by_g: jax.Array, largest: float) -> jax.Array:
    """lambda, given the gradients of both losses by one kernel; see the module."""
    ratio = optax.tree.norm(by_nll) / (optax.tree.norm(by_g) + _EPSILON)
    return jnp.minimum(ratio, largest)


def _attach(value: jax.Array, x: Any, gradient: Any) -> jax.Array:
    """`value` itself, with `gradient` as its derivative by the tree x."""
    zero = jax.tree.map(lambda a: a - jax.lax.stop_gradient(a), x)
    return value + optax.tree.vdot(jax.lax.stop_gradient(gradient), zero)


@dataclasses.dataclass(frozen=True)
class VAEObjective:
    """See the module. Of the frames and the log-variance; the KL is the task's.

    Attributes:
      reconstruct: rec of each error, elementwise.
      perceptual: None trains without LPIPS.
      perceptual_weight: w_p.
      lpips_missing: marks every line of the metrics (`lpips_none` 1): LPIPS was asked for and its weights are not here.
      learned_logvar: False keeps s at 0.
      discriminator: None trains without.
      gan_weight: w_g.
      gan_start: see the module.
      frame_size: pixels, height and width.
      optimizers: of 'logvar' and of 'discriminator', where there are such.
    """

    reconstruct: Callable[[jax.Array], jax.Array]
    perceptual: lpips.LPIPS | None = None
    perceptual_weight: float = 0.0
    lpips_missing: bool = False
    learned_logvar: bool = False
    discriminator: discriminator_lib.PatchDiscriminator | None = None
    gan_weight: float = 0.0
    gan_start: int = 0
    frame_size: int = 64
    optimizers: Mapping[str, optax.GradientTransformation] = dataclasses.field(default_factory=dict)

    @property
    def trains(self) -> bool:
        """Whether it has parameters of its own."""
        return self.learned_logvar or self.discriminator is not None

    def init(self, key: jax.Array) -> Any:
        """{'params', 'opt_state'}, each of 'logvar' (a scalar) and 'discriminator' where they are; None without."""
        params: dict[str, Any] = {}
        if self.learned_logvar:
            params["logvar"] = jnp.zeros(())
        if self.discriminator is not None:
            frames = jnp.zeros((1, self.frame_size, self.frame_size, 3))
            params["discriminator"] = self.discriminator.init(key, frames)["params"]
        if not params:
            return None
        return dict(params=params, opt_state={name: self.optimizers[name].init(params[name]) for name in params})

    def update(self, extra: Any, grads: Any, step: jax.Array) -> Any:
        """`init`'s tree one optimiser step on; the discriminator and its optimiser as they are before gan_start."""
        params, opt_state = {}, {}
        for name, before in extra["params"].items():
            started = step >= (self.gan_start if name == "discriminator" else 0)
            old = before, extra["opt_state"][name]
            updates, new_state = self.optimizers[name].update(grads[name], old[1], before)
            new = optax.apply_updates(before, updates), new_state
            params[name], opt_state[name] = jax.tree.map(lambda a, b: jnp.where(started, a, b), new, old)
        return dict(params=params, opt_state=opt_state)

    def nll(self, made: jax.Array, logvar: jax.Array, real: jax.Array, weights: Any) -> tuple[jax.Array, Values]:
        """nll of frames [N, H, W, 3] and its metrics recon and lpips. weights: of LPIPS."""
        total = jnp.mean(self.reconstruct(made - real))
        values = {"recon": metrics.average(total)}
        if self.perceptual is not None:
            distance = self.perceptual.apply({"params": weights}, made, real)  # [N]
            total += self.perceptual_weight * jnp.mean(distance)
            values["lpips"] = metrics.average(distance)
        return total * jnp.exp(-logvar) + logvar, values

    def _play(
        self, params: Any, made: jax.Array, real: jax.Array, by_nll: jax.Array, last_layer: LastLayer
    ) -> dict[str, jax.Array]:
        """g, dg/dx', lambda given dnll/dx', d and the mean logits; of these d alone has a gradient, by params.

        lambda costs one more forward pass of the decoder.
        """
        fixed = jax.lax.stop_gradient(params)
        logits = lambda tree, frames: self.discriminator.apply({"params": tree}, frames)  # noqa: E731
        g, by_made = jax.value_and_grad(lambda frames: -jnp.mean(logits(fixed, frames)))(made)
        on_real, on_made = logits(params, real), logits(params, made)
        through, kernel = last_layer
        _, pull = jax.vjp(through, kernel)
        weight = adaptive_weight(pull(by_nll), pull(by_made), _LARGEST / (real.size // real.shape[0]))
        out = dict(g=g, by_made=by_made, weight=weight, d=hinge(on_real, on_made))
        return out | dict(real=jnp.mean(on_real), made=jnp.mean(on_made))

    def loss(
        self,
        made: jax.Array,
        real: jax.Array,
        trained: Any,
        frozen: Mapping[str, Any],
        last_layer: LastLayer,
    ) -> tuple[jax.Array, Values]:
        """(nll + w_g lambda g, metrics); its gradient by the discriminator is that of d.

        The gradient by x' is put together first and goes back through the decoder once.

        Args:
          made: x', float32 [N, H, W, 3].
          real: x, likewise.
          trained: `init`'s params; {} without any.
          frozen: 'lpips' with LPIPS; 'step', the finished ones, with a discriminator.
          last_layer: see `LastLayer`.
        """
        frames = jax.lax.stop_gradient(made)
        logvar = trained.get("logvar", jnp.zeros(()))
        nll = jax.value_and_grad(self.nll, argnums=(0, 1), has_aux=True)
        (total, values), (by_made, by_logvar) = nll(frames, jax.lax.stop_gradient(logvar), real, frozen.get("lpips"))
        values["nll"] = metrics.average(total)
        if self.lpips_missing:
            values["lpips_none"] = metrics.average(1.0)
        if self.learned_logvar:
            values["logvar"] = metrics.average(logvar)
            total = _attach(total, logvar, by_logvar)
        if self.discriminator is not None:
            started = frozen["step"] >= self.gan_start
            inputs = trained["discriminator"], frames, real, by_made
            play = functools.partial(self._play, last_layer=last_layer)
            nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(play, *inputs))
            game = jax.lax.cond(started, play, lambda *_: nothing, *inputs)
            weight = game["weight"]
            by_made += self.gan_weight * weight * game["by_made"]
            # d adds its gradient to the sum and nothing to its value.
            total += self.gan_weight * weight * game["g"] + (game["d"] - jax.lax.stop_gradient(game["d"]))
            terms = dict(generator=game["g"], discriminator=game["d"], adaptive=weight)
            terms |= dict(logit_real=game["real"], logit_made=game["made"])
            values |= {f"gan_{name}": metrics.average(value, started) for name, value in terms.items()}
        return _attach(total, made, by_made), values


def build(config: ml_collections.ConfigDict, stage: str) -> VAEObjective | None:
    """The objective of 'image_vae' or 'vae'; None for the plain reconstruction."""
    vae, settings = config.vae, config.train[stage]
    perceptual, adversarial, learned = vae.perceptual_weight > 0, vae.gan_weight > 0, vae.logvar == "learned"
    if not (perceptual or adversarial or learned):
        return None
    dtype = jnp.dtype(settings.dtype)
    optimizers = {}
    if learned:  # as the autoencoder's vectors
        schedule = optim.make_schedule(**optim.curve(settings))
        optimizers["logvar"] = optax.adam(schedule, settings.b1, settings.b2)
    if adversarial:
        optimizers["discriminator"] = optax.adam(vae.gan_learning_rate, 0.5, 0.9)
    found = perceptual and bool(vae.lpips_weights)
    return VAEObjective(
        reconstruct=RECONSTRUCTIONS[vae.loss],
        perceptual=lpips.LPIPS(dtype=dtype) if found else None,
        perceptual_weight=vae.perceptual_weight,
        lpips_missing=perceptual and not found,
        learned_logvar=learned,
        discriminator=discriminator_lib.PatchDiscriminator(vae.gan_channels, vae.gan_layers, dtype)
        if adversarial
        else None,
        gan_weight=vae.gan_weight,
        gan_start=vae.gan_start[config_lib.VAE_STAGES.index(stage)],
        frame_size=config.data.frame_size,
        optimizers=optimizers,
    )


RECONSTRUCTIONS = {
    "l1": jnp.abs,
    "l2": jnp.square,
    "l1+l2": lambda error: jnp.abs(error) + jnp.square(error),
}
