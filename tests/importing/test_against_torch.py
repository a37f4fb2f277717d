"""Imported networks against their torch originals, randomly initialised, in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nuwaxl_jax.importing import names
from nuwaxl_jax.importing import trees
from nuwaxl_jax.models import mtd_unet
from nuwaxl_jax.models import text_encoder
from nuwaxl_jax.models import tklvae

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity


def state_of(module):
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


def shaken(module):
    """Not as initialised, where zeros and ones would hide a mistake."""
    torch.manual_seed(0)
    with torch.no_grad():
        for value in module.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return module.eval()


def imported(entries, module, params, ignored=()):
    state = state_of(module)
    report = trees.compare(entries, {k: v.shape for k, v in state.items()}, params, ignored)
    assert report.fits and not report.unexpected, report
    return trees.fill(entries, state, params), state


@pytest.mark.parametrize("mults, blocks, latent", [((1, 2), 1, 4), ((1, 1, 2), 2, 3)])
def test_autoencoder(mults, blocks, latent, equals_original):
    theirs = shaken(
        diffusers.AutoencoderKL(
            block_out_channels=tuple(64 * m for m in mults),
            down_block_types=("DownEncoderBlock2D",) * len(mults),
            up_block_types=("UpDecoderBlock2D",) * len(mults),
            layers_per_block=blocks,
            latent_channels=latent,
        )
    )
    ours = tklvae.TKLVAE(channels=64, channel_mults=mults, num_res_blocks=blocks, latent_channels=latent)
    pixels = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16, 3)).astype(np.float32)
    params = ours.init(jax.random.key(0), pixels[None])["params"]
    changes = tuple(a != b for a, b in zip(mults, mults[1:]))
    entries = names.vae_entries(len(mults), blocks, changes)
    filled, state = imported(entries, theirs, params)
    images = torch.from_numpy(pixels.transpose(0, 3, 1, 2))
    with torch.no_grad():
        posterior = theirs.encode(images).latent_dist
        pictures = theirs.decode(posterior.mean).sample
    mean, logvar = ours.apply({"params": filled}, pixels[None], method="encode")
    equals_original("T-KLVAE, posterior mean", mean[0].transpose(0, 3, 1, 2), posterior.mean)
    equals_original("T-KLVAE, log-variance", logvar[0].transpose(0, 3, 1, 2), posterior.logvar)
    decoded = ours.apply({"params": filled}, mean, method="decode")[0]
    equals_original("T-KLVAE, reconstruction", decoded.transpose(0, 3, 1, 2), pictures)
    # The video network is the image network on each frame, exactly.
    alone = ours.apply({"params": filled}, pixels[None], False, method="encode")[0]
    np.testing.assert_array_equal(mean, alone)
    back = trees.tensors_of(entries, filled)
    assert set(back) == set(state)
    for name, value in back.items():
        np.testing.assert_array_equal(value, state[name])


@pytest.mark.parametrize("mults, blocks, prompt", [((1, 2, 2), 2, (True, True, False)), ((1, 2), 1, (True, True))])
def test_unet(mults, blocks, prompt, equals_original):
    down = tuple("CrossAttnDownBlock2D" if p else "DownBlock2D" for p in prompt)
    up = tuple("CrossAttnUpBlock2D" if p else "UpBlock2D" for p in prompt[::-1])
    theirs = shaken(
        diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=tuple(64 * m for m in mults),
            down_block_types=down,
            up_block_types=up,
            layers_per_block=blocks,
            cross_attention_dim=24,
            attention_head_dim=8,
        )
    )
    ours = mtd_unet.MTDUNet(
        out_channels=4,
        channels=64,
        channel_mults=mults,
        num_res_blocks=blocks,
        num_heads=8,
        prompt_levels=prompt,
        ff_mult=4,
        num_levels=3,
        downsample_padding="symmetric",
        gelu="exact",
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 2, 8, 8, 4)).astype(np.float32)
    text = rng.normal(size=(2, 2, 7, 24)).astype(np.float32)
    t, level = jnp.array([637, 41]), jnp.array([1, 2])
    mask = np.zeros((2, 2, 8, 8, 1), np.float32)
    params = ours.init(jax.random.key(0), x, t, text, x, mask, level)["params"]
    changes = tuple(a != b for a, b in zip(mults, mults[1:]))
    entries = names.unet_entries(len(mults), blocks, prompt, changes)
    filled, state = imported(entries, theirs, params)
    with torch.no_grad():
        frames, each = torch.from_numpy(x.reshape(4, 8, 8, 4).transpose(0, 3, 1, 2)), torch.tensor([637, 637, 41, 41])
        wanted = theirs(frames, each, torch.from_numpy(text.reshape(4, 7, 24))).sample
    x_of, t_of, text_of = x.reshape(4, 8, 8, 4), jnp.repeat(t, 2), text.reshape(4, 7, 24)
    images = ours.apply({"params": filled}, x_of, t_of, text_of, method="denoise_images")
    equals_original("U-Net", images.transpose(0, 3, 1, 2), wanted)
    # With temporal layers and injections in place, whatever is given, the video is its frames.
    video = ours.apply({"params": filled}, x, t, text, x, mask + 1, level)
    np.testing.assert_array_equal(video.reshape(images.shape), images)
    for name, value in trees.tensors_of(entries, filled).items():
        np.testing.assert_array_equal(value, state[name])


@pytest.mark.parametrize("num_layers, width, heads", [(2, 32, 4), (3, 48, 3)])
def test_text_encoder(num_layers, width, heads, equals_original):
    config = transformers.CLIPTextConfig(
        vocab_size=99,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=num_layers,
        num_attention_heads=heads,
        max_position_embeddings=20,
        eos_token_id=98,
    )
    theirs = shaken(transformers.CLIPTextModel(config))
    ours = text_encoder.TextEncoder(99, 20, width, num_layers, heads)
    tokens = np.random.default_rng(0).integers(0, 98, (3, 20))
    tokens[0, 7:], tokens[1, 19], tokens[2, [3, 9]] = 98, 98, 98
    params = ours.init(jax.random.key(0), jnp.asarray(tokens))["params"]
    prefix = "text_model." if any(n.startswith("text_model.") for n in theirs.state_dict()) else ""
    entries = names.text_entries(num_layers, prefix)
    filled, _ = imported(entries, theirs, params, ignored=("text_model.embeddings.position_ids",))
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(tokens))
    states = ours.apply({"params": filled}, tokens)
    equals_original("CLIP text, last states", states, wanted.last_hidden_state)
    equals_original("CLIP text, pooled", text_encoder.pooled_state(states, tokens, 98), wanted.pooler_output)
