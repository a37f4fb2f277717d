"""The patch discriminator: the original's sizes, frames judged alone, and its convolutions in torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nuwaxl_jax.models import discriminator
from nuwaxl_jax.models import layers


def _frames(count=3, size=32):
    return np.random.default_rng(0).uniform(-1, 1, (count, size, size, 3)).astype(np.float32)


def test_size_and_initialisation_are_the_originals():
    module = discriminator.PatchDiscriminator()
    images = jax.ShapeDtypeStruct((2, 256, 256, 3), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 2_765_633
    assert jax.eval_shape(module.apply, {"params": shapes}, images).shape == (2, 30, 30)
    params = jax.jit(discriminator.PatchDiscriminator(32, 2).init)(jax.random.key(0), _frames())["params"]
    for name in ("conv0", "conv1", "conv2", "logit"):
        assert np.std(params[name]["kernel"]) == pytest.approx(0.02, rel=0.1)


def test_a_frame_is_judged_alone():
    module, frames = discriminator.PatchDiscriminator(8, 2), _frames()
    params, judge = jax.jit(module.init)(jax.random.key(0), frames), jax.jit(module.apply)
    together = judge(params, frames)
    for i in range(len(frames)):
        np.testing.assert_allclose(together[i], judge(params, frames[i : i + 1])[0], rtol=1e-5, atol=1e-6)


def test_the_smallest_frame_leaves_one_logit_and_a_smaller_one_is_refused():
    module = discriminator.PatchDiscriminator(4, 2)
    assert discriminator.min_size(2) == 12
    frames = _frames(1, 12)
    assert jax.eval_shape(module.init_with_output, jax.random.key(0), frames)[0].shape == (1, 1, 1)
    with pytest.raises(ValueError, match="with 2 layers needs .* at least 12"):
        module.init(jax.random.key(0), _frames(1, 11))


@pytest.mark.parity
def test_equals_the_same_layers_in_torch(equals_original):
    torch = pytest.importorskip("torch")
    module, frames = discriminator.PatchDiscriminator(8, 3), _frames(2, 40)
    shapes = jax.eval_shape(module.init, jax.random.key(0), frames)["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda s: (0.1 * rng.normal(size=s.shape)).astype(np.float32), shapes)
    functional, tensor = torch.nn.functional, lambda x: torch.from_numpy(np.array(x))

    def conv(x, layer, stride):
        kernel = tensor(layer["kernel"]).permute(3, 2, 0, 1)
        return functional.conv2d(x, kernel, tensor(layer["bias"]) if "bias" in layer else None, stride, 1)

    x = functional.leaky_relu(conv(tensor(frames).permute(0, 3, 1, 2), params["conv0"], 2), 0.2)
    for i, stride in ((1, 2), (2, 2), (3, 1)):
        x = conv(x, params[f"conv{i}"], stride)
        norm = params[f"norm{i}"]
        groups = layers.num_groups(x.shape[1])
        x = functional.group_norm(x, groups, tensor(norm["scale"]), tensor(norm["bias"]), 1e-6)
        x = functional.leaky_relu(x, 0.2)
    wanted = conv(x, params["logit"], 1)[:, 0].numpy()
    made = jax.jit(module.apply)({"params": params}, frames)
    equals_original("PatchGAN", made, wanted, 1e-5)
