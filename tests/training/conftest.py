"""A task of two lines and its data: enough to test steps, checkpoints and the loop in milliseconds."""

import types

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from nuwaxl_jax.training import checkpoint
from nuwaxl_jax.training import interrupts
from nuwaxl_jax.training import metrics
from nuwaxl_jax.training import optim
from nuwaxl_jax.training import state as state_lib


class LinearTask:
    """y = x W + b, regressed on a noisy target; the noise of an example comes from its own key."""

    stage = "linear"
    fields = ("x", "y")
    no_decay = ""
    new_layers = ""

    def __init__(self, noise=0.1):
        self.noise = noise

    def init(self, key):
        return {"dense": {"kernel": jax.random.normal(key, (8, 16)), "bias": jnp.zeros(16)}}

    def loss(self, params, frozen, batch, keys):
        noise = jax.vmap(lambda key: jax.random.normal(key, (16,)))(keys)
        out = batch["x"] @ params["dense"]["kernel"] + params["dense"]["bias"]
        error = jnp.mean(jnp.square(out * frozen["scale"] - batch["y"] - self.noise * noise), axis=-1)  # [B]
        return jnp.mean(error), {"mse": metrics.average(error), "even": metrics.average(error, batch["y"][:, 0] > 0)}


class Numbers:
    """Batch k is drawn from the seed k; poisoned from batch `bad` on. Its position is k."""

    def __init__(self, size=8, bad=None):
        self.size, self.bad, self.position = size, bad, 0

    def __iter__(self):
        return self

    def __next__(self):
        rng = np.random.default_rng(self.position)
        batch = {
            "x": rng.normal(size=(self.size, 8)).astype(np.float32),
            "y": rng.normal(size=(self.size, 16)).astype(np.float32),
            "episode": np.arange(self.size) + 100 * self.position,
        }
        if self.bad is not None and self.position >= self.bad:
            batch["x"][0, 0] = np.inf
        self.position += 1
        return batch

    def get_state(self):
        return {"next_batch": self.position}

    def set_state(self, state):
        self.position = state["next_batch"]

    def close(self):
        pass


def settings(**overrides):
    """config.train.<stage> of the linear task."""
    fields = dict(
        batch_size=8,
        num_steps=10,
        optimizer="adamw",
        learning_rate=1e-2,
        pretrained_lr_ratio=1.0,
        trainable="",
        warmup_steps=2,
        lr_schedule="cosine",
        min_lr_ratio=0.1,
        weight_decay=0.01,
        b1=0.9,
        b2=0.99,
        grad_clip=1.0,
        ema_decay=0.9,
        accumulate=1,
        log_every=5,
        sample_every=0,
        checkpoint_every=5,
        keep=3,
        keep_every=0,
        keep_hours=0.0,
        keep_best=0,
        best_metric="loss",
    )
    return ml_collections.ConfigDict({**fields, **overrides})


class StopAfter(interrupts.Interrupt):
    """Told to stop during step n (the loop asks once before the first)."""

    def __init__(self, step):
        super().__init__()
        self.left = step + 1

    def asked(self):
        self.left -= 1
        return self.left == 0


def state_at(mesh, step=3):
    """(state, abstract): the state of `step` differs from every other step's."""
    task, optimizer = LinearTask(), optim.make_optimizer(learning_rate=0.1, num_steps=10)
    state = state_lib.create(task, optimizer, jax.random.key(1), mesh, min_size=1)
    state = state.replace(step=state.step + step, ema_params=jax.tree.map(lambda x: x * 2 + step, state.params))
    return state, state_lib.abstract(task, optimizer, mesh, min_size=1)


def save(workdir, steps, mesh, keep=None, **values):
    """Saves the states of `steps`; (the last of them, abstract)."""
    keep = keep or checkpoint.Keep(newest=100)
    saver = checkpoint.Checkpointer(checkpoint.stage_directory(workdir, "linear"), keep)
    for step in steps:
        state, abstract = state_at(mesh, step)
        saver.save(state, **{"data": {"next_batch": step}, "config": {"seed": 5}, **values})
    saver.close()
    return state, abstract


def restore(workdir, abstract, step=None):
    """(state, meta)."""
    saver = checkpoint.Checkpointer(checkpoint.stage_directory(workdir, "linear"))
    try:
        return saver.restore(abstract, step)
    finally:
        saver.close()


@pytest.fixture
def linear():
    """LinearTask, Numbers, settings, the frozen tree; state_at, save and restore of its checkpoints."""
    return types.SimpleNamespace(
        Task=LinearTask,
        Numbers=Numbers,
        settings=settings,
        StopAfter=StopAfter,
        frozen={"scale": np.float32(1.0)},
        state_at=state_at,
        save=save,
        restore=restore,
    )
