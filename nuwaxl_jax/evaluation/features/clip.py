"""CLIP (Radford et al., arXiv:2103.00020), both towers: how well frames fit their prompts.

The text tower is `models.text_encoder`, the image tower a vision transformer of the same blocks. Read from a folder as
transformers has it (`config.json`, `model.safetensors`, the tokenizer's files), such as openai/clip-vit-base-patch32.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from nuwaxl_jax.data import clip_bpe
from nuwaxl_jax.importing import names
from nuwaxl_jax.importing import tensors as tensors_lib
from nuwaxl_jax.importing import trees
from nuwaxl_jax.models import text_encoder

_MEAN = np.array((0.48145466, 0.4578275, 0.40821073), np.float32)  # of the pixels that CLIP was trained on
_DEVIATION = np.array((0.26862954, 0.26130258, 0.27577711), np.float32)


class ImageTower(nn.Module):
    """Standardised frames float32 `[n, size, size, 3]` to embeddings `[n, projection]`."""

    patch: int
    width: int
    num_layers: int
    num_heads: int
    projection: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        sides = (self.patch, self.patch)
        x = nn.Conv(self.width, sides, sides, "VALID", use_bias=False, precision="highest", name="patches")(x)
        x = x.reshape(x.shape[0], -1, self.width)
        summary = self.param("summary", nn.initializers.normal(0.02), (self.width,), jnp.float32)
        x = jnp.concatenate((jnp.broadcast_to(summary, (x.shape[0], 1, self.width)), x), axis=1)
        x += self.param("positions", nn.initializers.normal(0.01), x.shape[1:], jnp.float32)
        x = nn.LayerNorm(epsilon=1e-5, name="first_norm")(x)
        everything = jnp.ones((x.shape[1],) * 2, bool)
        for i in range(self.num_layers):
            x = text_encoder.TextBlock(self.num_heads, name=f"block{i}")(x, everything)
        x = nn.LayerNorm(epsilon=1e-5, name="final_norm")(x[:, 0])
        return nn.Dense(self.projection, use_bias=False, precision="highest", name="projection")(x)


class TextTower(nn.Module):
    """Tokens int32 `[n, N]` to embeddings `[n, projection]`."""

    encoder: text_encoder.TextEncoder
    projection: int
    end: int  # id of the end token

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        state = text_encoder.pooled_state(self.encoder(tokens), tokens, self.end)
        return nn.Dense(self.projection, use_bias=False, precision="highest", name="projection")(state)


@dataclasses.dataclass(frozen=True)
class CLIP:
    """Both towers with their parameters.

    Attributes:
      size: pixels of a frame, height = width.
      sha256: of the weights.
    """

    image: ImageTower
    image_params: dict[str, Any]
    text: TextTower
    text_params: dict[str, Any]
    tokenizer: clip_bpe.CLIPTokenizer
    size: int
    sha256: str

    def tokens(self, captions: list[str]) -> np.ndarray:
        """int32 `[n, N]`."""
        return self.tokenizer.encode_batch(captions)

    def pixels(self, frames: np.ndarray) -> np.ndarray:
        """Frames uint8 `[n, H, W, 3]` as the image tower takes them: bicubic to `size`, standardised."""
        height, width = frames.shape[1:3]
        scale = self.size / min(height, width)
        across, down = (max(self.size, int(side * scale)) for side in (width, height))
        left, top = (across - self.size) // 2, (down - self.size) // 2
        box = (left, top, left + self.size, top + self.size)
        resized = [Image.fromarray(f).resize((across, down), Image.Resampling.BICUBIC).crop(box) for f in frames]
        return (np.stack(resized).astype(np.float32) / 255 - _MEAN) / _DEVIATION


def _entries(num_layers: int) -> list[names.Entry]:
    """`ImageTower`, as CLIPModel has it."""
    at = "vision_model."
    entries = [
        names.Entry("summary", (f"{at}embeddings.class_embedding",), "plain"),
        names.Entry("positions", (f"{at}embeddings.position_embedding.weight",), "plain"),
        names.Entry("patches/kernel", (f"{at}embeddings.patch_embedding.weight",), "conv"),
        names.Entry("projection/kernel", ("visual_projection.weight",), "linear"),
    ]
    for ours, theirs in (("first_norm", "pre_layrnorm"), ("final_norm", "post_layernorm")):  # the name is theirs
        entries += [names.Entry(f"{ours}/{a}", (f"{at}{theirs}.{b}",), "plain") for a, b in _NORM]
    blocks = [entry for entry in names.text_entries(num_layers, at) if entry.ours.startswith("block")]
    return entries + blocks


_NORM = (("scale", "weight"), ("bias", "bias"))


def read(folder: str | os.PathLike) -> CLIP:
    """The model in a folder.

    Raises:
      ValueError: files are missing or damaged, or it is another network.
    """
    folder = pathlib.Path(folder)
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder}: holds no config.json; give the folder of a CLIP model as transformers has it")
    settings = json.loads(file.read_text(encoding="utf-8"))
    tensors = tensors_lib.Tensors(folder)
    try:
        vision, text, projection = settings["vision_config"], settings["text_config"], settings["projection_dim"]
        for part in (vision, text):
            if part.get("hidden_act", "quick_gelu") != "quick_gelu":
                raise ValueError(
                    f"{file}: hidden_act is {part['hidden_act']}; only quick_gelu, OpenAI's, is known here"
                )
        shape = tensors.shapes["text_model.embeddings.token_embedding.weight"]
        patches = tensors.shapes["vision_model.embeddings.patch_embedding.weight"]
    except KeyError as error:
        raise ValueError(f"{folder}: is no CLIP model with both towers, {error} is missing") from error
    size = vision.get("image_size", 224)
    image = ImageTower(patches[-1], patches[0], vision["num_hidden_layers"], vision["num_attention_heads"], projection)
    positions = text.get("max_position_embeddings", 77)
    heads = text["num_attention_heads"]
    encoder = text_encoder.TextEncoder(shape[0], positions, shape[1], text["num_hidden_layers"], heads)
    tokenizer = clip_bpe.CLIPTokenizer(shape[0], positions, os.fspath(folder))
    tower = TextTower(encoder, projection, clip_bpe.read(os.fspath(folder)).ids[clip_bpe.EOS])
    entries = [
        dataclasses.replace(e, ours=f"encoder/{e.ours}") for e in names.text_entries(text["num_hidden_layers"])
    ] + [names.Entry("projection/kernel", ("text_projection.weight",), "linear")]
    frames, tokens = jnp.zeros((1, size, size, 3)), jnp.zeros((1, positions), jnp.int32)
    return CLIP(
        image,
        _filled(image, frames, _entries(vision["num_hidden_layers"]), tensors),
        tower,
        _filled(tower, tokens, entries, tensors),
        tokenizer,
        size,
        _digest(tensors),
    )


def _digest(tensors: tensors_lib.Tensors) -> str:
    """SHA-256 of the file; of several, of all their hashes."""
    hashes = [found for _, found in sorted(tensors.digest().items())]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _filled(tower: nn.Module, example: jax.Array, entries: list[names.Entry], tensors: tensors_lib.Tensors) -> Any:
    shapes = jax.eval_shape(tower.init, jax.random.key(0), example)["params"]
    report = trees.compare(entries, tensors.shapes, shapes)
    if not report.fits:
        problem = report.missing[0] + " is missing" if report.missing else report.wrong[0]
        raise ValueError(f"{tensors.path}: {problem}")
    return trees.fill(entries, tensors, shapes)
