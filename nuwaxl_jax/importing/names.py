"""Which tensors of public image networks are which of ours.

A table is a list of `Entry`, one an array of our tree, made from a config's sizes alone, so that it serves reading and
writing alike. `style` says whose names: 'diffusers' (folders of diffusers and transformers) or 'ldm' (the original
single-file checkpoints of latent diffusion and Stable Diffusion v1).

Theirs are torch layouts: convolutions `[out, in, rows, cols]`, linear maps `[out, in]`. Ours are
`[rows, cols, in, out]` and `[in, out]`; what attention needs together lies together (queries, keys and values of one
input in one matrix).
"""

from __future__ import annotations

import dataclasses
from typing import Collection, Iterator, Sequence

STYLES = ("diffusers", "ldm")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array of ours.

    Attributes:
      ours: its path in the tree, joined by '/'.
      theirs: the tensors it is made of, in the order in which they are joined along the output axis.
      kind: 'conv', 'linear', 'pointwise' (linear for us; a 1x1 convolution, or a linear map, for them) or 'plain'
        (vectors and embeddings, as they are).
    """

    ours: str
    theirs: tuple[str, ...]
    kind: str


def _layer(ours: str, theirs: str | Sequence[str], kind: str, bias: bool = True) -> Iterator[Entry]:
    """Kernel and bias of a convolution or a linear map."""
    names = (theirs,) if isinstance(theirs, str) else tuple(theirs)
    yield Entry(f"{ours}/kernel", tuple(f"{n}.weight" for n in names), kind)
    if bias:
        yield Entry(f"{ours}/bias", tuple(f"{n}.bias" for n in names), "plain")


def _norm(ours: str, theirs: str) -> Iterator[Entry]:
    yield Entry(f"{ours}/scale", (f"{theirs}.weight",), "plain")
    yield Entry(f"{ours}/bias", (f"{theirs}.bias",), "plain")


def vae_entries(
    num_levels: int, num_res_blocks: int, changes_width: Sequence[bool], style: str = "diffusers"
) -> list[Entry]:
    """The image part of `models.tklvae.TKLVAE`, as AutoencoderKL has it.

    Args:
      num_levels: len(vae.channel_mults).
      num_res_blocks: of an encoder level; the decoder has one more.
      changes_width: whether channels differ between level l - 1 and l, for l = 1, 2, ...: where a shortcut stands.
      style: see the module.
    """
    name = _VAE[style]
    entries = [
        *_layer("encoder/conv_in/spatial", f"{name.encoder}.conv_in", "conv"),
        *_layer("decoder/conv_in/spatial", f"{name.decoder}.conv_in", "conv"),
    ]
    for level in range(num_levels):
        for i in range(num_res_blocks):
            shortcut = i == 0 and level > 0 and changes_width[level - 1]
            theirs = name.down_res.format(level=level, i=i)
            entries += _vae_res(f"encoder/down{level}_res{i}", theirs, shortcut, style)
        if level < num_levels - 1:
            theirs = name.down_sample.format(level=level)
            entries += _layer(f"encoder/down{level}_sample/spatial", theirs, "conv")
        mirrored = num_levels - 1 - level if style == "diffusers" else level
        for i in range(num_res_blocks + 1):
            shortcut = i == 0 and level < num_levels - 1 and changes_width[level]
            entries += _vae_res(f"decoder/up{level}_res{i}", name.up_res.format(level=mirrored, i=i), shortcut, style)
        if level > 0:
            entries += _layer(f"decoder/up{level}_sample/spatial", name.up_sample.format(level=mirrored), "conv")
    for half, prefix in (("encoder", name.encoder), ("decoder", name.decoder)):
        entries += _vae_res(f"{half}/mid/res1", f"{prefix}.{name.mid_res1}", False, style)
        entries += _norm(f"{half}/mid/norm", f"{prefix}.{name.mid_attention}.{name.attention_norm}")
        query, key, value, out = (f"{prefix}.{name.mid_attention}.{n}" for n in name.attention)
        entries += _layer(f"{half}/mid/attention/qkv", (query, key, value), name.attention_kind)
        entries += _layer(f"{half}/mid/attention/out", out, name.attention_kind)
        entries += _vae_res(f"{half}/mid/res2", f"{prefix}.{name.mid_res2}", False, style)
        entries += _norm(f"{half}/norm_out", f"{prefix}.{name.norm_out}")
        entries += _layer(f"{half}/conv_out/spatial", f"{prefix}.conv_out", "conv")
    entries += _layer("encoder/quant", name.quant, "conv")
    entries += _layer("decoder/post_quant", name.post_quant, "conv")
    return entries


def with_older_attention(entries: Sequence[Entry], there: Collection[str]) -> list[Entry]:
    """The VAE's table with the attention's names of older diffusers folders, in a half where `there` has its query."""
    out = []
    for entry in entries:
        place = f"{entry.theirs[0].split('.')[0]}.{_VAE['diffusers'].mid_attention}."
        if f"{place}query.weight" in there:
            entry = dataclasses.replace(entry, theirs=tuple(_older(name, place) for name in entry.theirs))
        out.append(entry)
    return out


def _older(name: str, place: str) -> str:
    for new, old in zip(_VAE["diffusers"].attention, _OLDER_ATTENTION):
        if name.startswith(f"{place}{new}."):
            return name.replace(f"{place}{new}.", f"{place}{old}.")
    return name


def _vae_res(ours: str, theirs: str, shortcut: bool, style: str) -> Iterator[Entry]:
    yield from _norm(f"{ours}/norm1", f"{theirs}.norm1")
    yield from _layer(f"{ours}/conv1/spatial", f"{theirs}.conv1", "conv")
    yield from _norm(f"{ours}/norm2", f"{theirs}.norm2")
    yield from _layer(f"{ours}/conv2/spatial", f"{theirs}.conv2", "conv")
    if shortcut:
        yield from _layer(f"{ours}/shortcut", f"{theirs}.{_VAE[style].shortcut}", "conv")


def unet_entries(
    num_levels: int,
    num_res_blocks: int,
    prompt_levels: Sequence[bool],
    changes_width: Sequence[bool],
    style: str = "diffusers",
) -> list[Entry]:
    """The image part of `models.mtd_unet.MTDUNet`, as UNet2DConditionModel has it in the layout of Stable Diffusion v1.

    A level without prompt attention has no transformer there; ours stays as it is at initialisation, the identity.

    Args:
      num_levels, num_res_blocks: of the config's unet.
      prompt_levels: levels that have a transformer.
      changes_width: as for `vae_entries`.
      style: see the module.
    """
    name = _UNET[style]
    entries = [
        *_layer("time_in", name.time_in, "linear"),
        *_layer("time_out", name.time_out, "linear"),
        *_layer("conv_in", name.conv_in, "conv"),
        *_norm("norm_out", name.norm_out),
        *_layer("conv_out", name.conv_out, "conv"),
        *_unet_res("mid/res", name.mid[0], False, style),
        *_transformer("mid/transformer", name.mid[1]),
        *_unet_res("mid_res", name.mid[2], False, style),
    ]
    for level in range(num_levels):
        for i in range(num_res_blocks):
            shortcut = i == 0 and level > 0 and changes_width[level - 1]
            place = dict(level=level, i=i, n=1 + level * (num_res_blocks + 1) + i)
            entries += _unet_res(f"down{level}_{i}/res", name.down_res.format(**place), shortcut, style)
            if prompt_levels[level]:
                entries += _transformer(f"down{level}_{i}/transformer", name.down_attention.format(**place))
        if level < num_levels - 1:
            place = dict(level=level, n=(level + 1) * (num_res_blocks + 1))
            entries += _layer(f"downsample{level}", name.down_sample.format(**place), "conv")
        mirrored = num_levels - 1 - level
        for i in range(num_res_blocks + 1):
            place = dict(level=mirrored, i=i, n=mirrored * (num_res_blocks + 1) + i)
            # Every up block joins a skip, so every one changes its width.
            entries += _unet_res(f"up{level}_{i}/res", name.up_res.format(**place), True, style)
            if prompt_levels[level]:
                entries += _transformer(f"up{level}_{i}/transformer", name.up_attention.format(**place))
        if level > 0:
            # In 'ldm' the doubling stands after the transformer, or in its place.
            place |= dict(last=2 if prompt_levels[level] else 1)
            entries += _layer(f"upsample{level}", name.up_sample.format(**place), "conv")
    return entries


def _unet_res(ours: str, theirs: str, shortcut: bool, style: str) -> Iterator[Entry]:
    norm1, conv1, time, norm2, conv2, skip = _UNET[style].res
    yield from _norm(f"{ours}/norm1", f"{theirs}.{norm1}")
    yield from _layer(f"{ours}/conv1", f"{theirs}.{conv1}", "conv")
    yield from _layer(f"{ours}/time", f"{theirs}.{time}", "linear")
    yield from _norm(f"{ours}/norm2", f"{theirs}.{norm2}")
    yield from _layer(f"{ours}/conv2", f"{theirs}.{conv2}", "conv")
    if shortcut:
        yield from _layer(f"{ours}/shortcut", f"{theirs}.{skip}", "conv")


def _transformer(ours: str, theirs: str) -> Iterator[Entry]:
    """Alike in both styles."""
    block = f"{theirs}.transformer_blocks.0"
    yield from _norm(f"{ours}/norm", f"{theirs}.norm")
    yield from _layer(f"{ours}/proj_in", f"{theirs}.proj_in", "pointwise")
    for i in (1, 2, 3):
        yield from _norm(f"{ours}/norm{i}", f"{block}.norm{i}")
    inputs = [f"{block}.attn1.to_{n}" for n in "qkv"]
    yield from _layer(f"{ours}/self_attention/qkv", inputs, "linear", bias=False)
    yield from _layer(f"{ours}/self_attention/out", f"{block}.attn1.to_out.0", "linear")
    yield from _layer(f"{ours}/prompt_attention/q", f"{block}.attn2.to_q", "linear", bias=False)
    inputs = [f"{block}.attn2.to_{n}" for n in "kv"]
    yield from _layer(f"{ours}/prompt_attention/kv", inputs, "linear", bias=False)
    yield from _layer(f"{ours}/prompt_attention/out", f"{block}.attn2.to_out.0", "linear")
    yield from _layer(f"{ours}/feed_forward/in", f"{block}.ff.net.0.proj", "linear")
    yield from _layer(f"{ours}/feed_forward/out", f"{block}.ff.net.2", "linear")
    yield from _layer(f"{ours}/proj_out", f"{theirs}.proj_out", "pointwise")


def text_entries(num_layers: int, prefix: str = "text_model.") -> list[Entry]:
    """`models.text_encoder.TextEncoder`, as CLIPTextModel has it; the same in every style.

    prefix: where the transformer stands: newer files have none, older ones 'text_model.', 'ldm' a longer one.
    """
    entries = [
        Entry("tokens/embedding", (f"{prefix}embeddings.token_embedding.weight",), "plain"),
        Entry("positions", (f"{prefix}embeddings.position_embedding.weight",), "plain"),
        *_norm("final_norm", f"{prefix}final_layer_norm"),
    ]
    for i in range(num_layers):
        theirs = f"{prefix}encoder.layers.{i}"
        entries += _norm(f"block{i}/norm1", f"{theirs}.layer_norm1")
        inputs = [f"{theirs}.self_attn.{n}_proj" for n in "qkv"]
        entries += _layer(f"block{i}/attention/qkv", inputs, "linear")
        entries += _layer(f"block{i}/attention/out", f"{theirs}.self_attn.out_proj", "linear")
        entries += _norm(f"block{i}/norm2", f"{theirs}.layer_norm2")
        entries += _layer(f"block{i}/mlp_in", f"{theirs}.mlp.fc1", "linear")
        entries += _layer(f"block{i}/mlp_out", f"{theirs}.mlp.fc2", "linear")
    return entries


@dataclasses.dataclass(frozen=True)
class _VAENames:
    encoder: str
    decoder: str
    down_res: str
    down_sample: str
    up_res: str
    up_sample: str
    mid_res1: str
    mid_res2: str
    mid_attention: str
    attention_norm: str
    attention: tuple[str, str, str, str]
    attention_kind: str
    norm_out: str
    shortcut: str
    quant: str
    post_quant: str


@dataclasses.dataclass(frozen=True)
class _UNetNames:
    time_in: str
    time_out: str
    conv_in: str
    norm_out: str
    conv_out: str
    mid: tuple[str, str, str]
    down_res: str
    down_attention: str
    down_sample: str
    up_res: str
    up_attention: str
    up_sample: str
    res: tuple[str, ...]


_OLDER_ATTENTION = ("query", "key", "value", "proj_attn")  # Stable Diffusion v1's and v2's folders have these
_FIRST, _MODEL = "first_stage_model", "model.diffusion_model"
_VAE = {
    "diffusers": _VAENames(
        encoder="encoder",
        decoder="decoder",
        down_res="encoder.down_blocks.{level}.resnets.{i}",
        down_sample="encoder.down_blocks.{level}.downsamplers.0.conv",
        up_res="decoder.up_blocks.{level}.resnets.{i}",
        up_sample="decoder.up_blocks.{level}.upsamplers.0.conv",
        mid_res1="mid_block.resnets.0",
        mid_res2="mid_block.resnets.1",
        mid_attention="mid_block.attentions.0",
        attention_norm="group_norm",
        attention=("to_q", "to_k", "to_v", "to_out.0"),
        attention_kind="linear",
        norm_out="conv_norm_out",
        shortcut="conv_shortcut",
        quant="quant_conv",
        post_quant="post_quant_conv",
    ),
    "ldm": _VAENames(
        encoder=f"{_FIRST}.encoder",
        decoder=f"{_FIRST}.decoder",
        down_res=f"{_FIRST}.encoder.down.{{level}}.block.{{i}}",
        down_sample=f"{_FIRST}.encoder.down.{{level}}.downsample.conv",
        up_res=f"{_FIRST}.decoder.up.{{level}}.block.{{i}}",
        up_sample=f"{_FIRST}.decoder.up.{{level}}.upsample.conv",
        mid_res1="mid.block_1",
        mid_res2="mid.block_2",
        mid_attention="mid.attn_1",
        attention_norm="norm",
        attention=("q", "k", "v", "proj_out"),
        attention_kind="pointwise",
        norm_out="norm_out",
        shortcut="nin_shortcut",
        quant=f"{_FIRST}.quant_conv",
        post_quant=f"{_FIRST}.post_quant_conv",
    ),
}
_UNET = {
    "diffusers": _UNetNames(
        time_in="time_embedding.linear_1",
        time_out="time_embedding.linear_2",
        conv_in="conv_in",
        norm_out="conv_norm_out",
        conv_out="conv_out",
        mid=("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"),
        down_res="down_blocks.{level}.resnets.{i}",
        down_attention="down_blocks.{level}.attentions.{i}",
        down_sample="down_blocks.{level}.downsamplers.0.conv",
        up_res="up_blocks.{level}.resnets.{i}",
        up_attention="up_blocks.{level}.attentions.{i}",
        up_sample="up_blocks.{level}.upsamplers.0.conv",
        res=("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut"),
    ),
    "ldm": _UNetNames(
        time_in=f"{_MODEL}.time_embed.0",
        time_out=f"{_MODEL}.time_embed.2",
        conv_in=f"{_MODEL}.input_blocks.0.0",
        norm_out=f"{_MODEL}.out.0",
        conv_out=f"{_MODEL}.out.2",
        mid=(f"{_MODEL}.middle_block.0", f"{_MODEL}.middle_block.1", f"{_MODEL}.middle_block.2"),
        down_res=f"{_MODEL}.input_blocks.{{n}}.0",
        down_attention=f"{_MODEL}.input_blocks.{{n}}.1",
        down_sample=f"{_MODEL}.input_blocks.{{n}}.0.op",
        up_res=f"{_MODEL}.output_blocks.{{n}}.0",
        up_attention=f"{_MODEL}.output_blocks.{{n}}.1",
        up_sample=f"{_MODEL}.output_blocks.{{n}}.{{last}}.conv",
        res=("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection"),
    ),
}
