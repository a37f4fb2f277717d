"""T-KLVAE: exactly its image KL-VAE at init, per-frame normalisation, no temporal compression."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nuwaxl_jax.models import tklvae

SMALL = dict(channels=4, channel_mults=(1, 2), num_res_blocks=1, latent_channels=3)


def _video(length=4, size=8):
    return jax.random.uniform(jax.random.key(7), (2, length, size, size, 3), minval=-1.0)


def _init(**fields):
    module = tklvae.TKLVAE(**SMALL, **fields)
    return module, module.init(jax.random.key(0), _video())


def test_at_init_it_is_bit_for_bit_the_image_vae_on_each_frame():
    module, params = _init()
    video = _video()
    frames = video.reshape(8, 1, 8, 8, 3)
    out, mean, logvar = module.apply(params, video)
    image_out, image_mean, image_logvar = module.apply(params, video, None, False)
    np.testing.assert_array_equal(out, image_out)
    np.testing.assert_array_equal(mean, image_mean)
    np.testing.assert_array_equal(logvar, image_logvar)
    # and image by image, as a batch of single frames
    single, _, _ = module.apply(params, frames, None, False)
    np.testing.assert_allclose(out.reshape(single.shape), single, atol=1e-5)


def _perturbed(params):
    return jax.tree.map(lambda x: x + 0.05 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), params)


def test_a_still_clip_is_alike_at_every_length_and_place():
    """With edge padding no frame knows that the clip ends beside it; with zero padding the first and the last do."""
    module, params = _init()
    params, image = _perturbed(params), _video(length=1)
    alone, _ = module.apply(params, image, method="encode")
    still, _ = module.apply(params, jnp.repeat(image, 5, axis=1), method="encode")
    np.testing.assert_allclose(still, jnp.broadcast_to(alone, still.shape), atol=2e-5)
    module, _ = _init(temporal_padding="zero")
    still, _ = module.apply(params, jnp.repeat(image, 5, axis=1), method="encode")
    assert float(jnp.abs(still[:, 0] - still[:, 2]).max()) > 1e-3


def test_random_temporal_init_is_not_the_image_vae():
    module, params = _init(temporal_init="random")
    video = _video()
    assert jnp.abs(module.apply(params, video)[0] - module.apply(params, video, None, False)[0]).max() > 1e-3


def test_once_trained_frames_see_each_other_and_without_temporal_layers_they_do_not():
    module, params = _init()
    params, video = _perturbed(params), _video()
    changed = video.at[:, 2].multiply(-0.5)
    delta = jnp.abs(module.apply(params, changed)[0] - module.apply(params, video)[0]).max((0, 2, 3, 4))
    assert (delta > 1e-6).all()
    delta = jnp.abs(module.apply(params, changed, None, False)[0] - module.apply(params, video, None, False)[0])
    assert float(delta[:, [0, 1, 3]].max()) < 1e-6 and float(delta[:, 2].max()) > 1e-3


def test_shapes_no_temporal_compression():
    module, params = _init()
    mean, logvar = module.apply(params, _video(length=5, size=16), method="encode")
    assert mean.shape == logvar.shape == (2, 5, 8, 8, 3)
    assert module.apply(params, mean, method="decode").shape == (2, 5, 16, 16, 3)


def test_temporal_none_has_no_temporal_parameters():
    _, params = _init(temporal="none")
    names = "/".join(str(path) for path, _ in jax.tree_util.tree_leaves_with_path(params))
    assert "temporal" not in names
    with pytest.raises(ValueError, match="temporal"):
        _init(temporal="conv3d")


def test_indivisible_frames_are_refused():
    module, params = _init()
    with pytest.raises(ValueError, match="multiples of 2"):
        module.apply(params, jnp.zeros((1, 2, 9, 8, 3)), method="encode")


def test_kl_of_known_gaussians():
    # KL(N(m, s^2) || N(0, 1)) = (m^2 + s^2 - 1) / 2 - log s
    assert float(tklvae.kl_divergence(jnp.array(0.0), jnp.array(0.0))) == 0.0
    np.testing.assert_allclose(tklvae.kl_divergence(2.0, np.log(0.25)), (4 + 0.25 - 1) / 2 - np.log(0.5), rtol=1e-6)


def test_posterior_sample_has_the_posterior_moments():
    mean, logvar = jnp.full((50_000,), 1.5), jnp.full((50_000,), np.log(0.25))
    z = tklvae.posterior_sample(mean, logvar, jax.random.key(0))
    np.testing.assert_allclose((z.mean(), z.std()), (1.5, 0.5), atol=0.01)
