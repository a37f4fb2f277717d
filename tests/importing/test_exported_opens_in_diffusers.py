"""What --mode=export --layout=diffusers writes is opened by diffusers and transformers, and computes the same there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax import weights

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity


def test_the_folder_is_a_pipelines(pipeline, original, config, equals_original):
    bundle, _, _ = weights.load(original)
    networks = networks_lib.build(config)
    rng = np.random.default_rng(1)
    pixels = rng.uniform(-1, 1, (1, 2, 8, 8, 3)).astype(np.float32)
    channels_first = torch.from_numpy(pixels[0].transpose(0, 3, 1, 2))
    vae = diffusers.AutoencoderKL.from_pretrained(pipeline / "vae").eval()
    assert vae.config.scaling_factor == pytest.approx(0.18215)
    with torch.no_grad():
        wanted = vae.encode(channels_first).latent_dist.mean
    mean, _ = networks.encode(bundle["vae"], jnp.asarray(pixels), temporal=False)
    equals_original("exported folder, vae", mean[0].transpose(0, 3, 1, 2), wanted)

    tokenizer = transformers.CLIPTokenizer.from_pretrained(pipeline / "tokenizer")
    captions = ["a cat", "cat at a cat at a cat at a cat"]
    theirs = tokenizer(captions, padding="max_length", truncation=True, max_length=9, return_tensors="pt")["input_ids"]
    tokens = networks.tokenizer.encode_batch(captions)
    np.testing.assert_array_equal(tokens, theirs.numpy())
    text_encoder = transformers.CLIPTextModel.from_pretrained(pipeline / "text_encoder").eval()
    with torch.no_grad():
        states = text_encoder(theirs).last_hidden_state
    text = networks.text_states(bundle["denoisers"][0]["text"], jnp.asarray(tokens))
    equals_original("exported folder, text_encoder", text, states)

    unet = diffusers.UNet2DConditionModel.from_pretrained(pipeline / "unet").eval()
    x = rng.normal(size=(2, 4, 4, 4)).astype(np.float32)
    with torch.no_grad():
        wanted = unet(torch.from_numpy(x), torch.tensor([500, 3]), states).sample
    params = bundle["denoisers"][0]
    # The last level's own transformer is ours alone; at its zero output projection it is the identity, as when new.
    for side, count in (("down", 1), ("up", 2)):
        for i in range(count):
            last = params["unet"][f"{side}1_{i}"]["transformer"]["proj_out"]
            last["kernel"], last["bias"] = 0 * last["kernel"], 0 * last["bias"]
    images = jax.jit(networks.denoise_images)(params, jnp.asarray(x.transpose(0, 2, 3, 1)), jnp.array([500, 3]), text)
    equals_original("exported folder, unet", images.transpose(0, 3, 1, 2), wanted)

    scheduler = diffusers.DDIMScheduler.from_pretrained(pipeline / "scheduler")
    np.testing.assert_allclose(scheduler.alphas_cumprod.numpy(), networks.diffusion.alphas_cumprod, rtol=1e-4)
