"""Every config mistake is one line that names the field and the mend."""

import importlib.util
import json
import pathlib
import re

import pytest

from nuwaxl_jax import config as config_lib
from nuwaxl_jax import weights

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"


def _changed(**fields):
    config = config_lib.default()
    for path, value in fields.items():
        config.update_from_flattened_dict({path.replace("__", "."): value})
    return config


def test_default_is_valid_and_survives_json():
    config = config_lib.validate(config_lib.default())
    again = config_lib.from_json(config_lib.to_json(config))
    assert again == config
    assert config_lib.window_frames(config) == 3376  # the paper's length, L = 16 and depth 3


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.py")), ids=lambda file: file.stem)
def test_presets_are_those_of_the_files_table_and_valid(file):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    presets = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(presets)
    with pytest.raises(config_lib.ConfigError, match="has no preset 'none of them'; choose one of ") as refused:
        presets.get_config("none of them")
    names = str(refused.value).split("choose one of ")[1].split(", ")
    assert re.findall(r"^([a-z_0-9]+)  ", presets.__doc__.split("preset ")[1], re.MULTILINE) == names
    for name in names:
        config = presets.get_config(name)
        config.data.path = config.data.path or "somewhere"
        config_lib.validate(config)


def test_the_shipped_weights_are_the_preset_that_makes_them_again(toons_presets):
    """But for the name, previews, and how embeddings start that no weights bring: a changed recipe is another model."""
    _, shipped, _ = weights.load(weights.find("shipped"), only=("nothing",))
    preset, made = toons_presets.get_config("motion").to_dict(), shipped.to_dict()
    for config in (preset, made):
        del config["name"], config["text"]["embedding_std"], config["train"]["denoiser"]["sample_every"]
    assert json.loads(json.dumps(preset)) == json.loads(json.dumps(made))


def test_a_text_older_than_a_field_reads_as_the_network_it_was():
    values = config_lib.default().to_dict()
    del (
        values["unet"]["condition_fill"],
        values["diffusion"]["line_std"],
        values["sampler"]["temperature"],
        values["data"]["prefetch"],
    )
    config = config_lib.from_json(json.dumps(values))
    assert config.unet.condition_fill == ("zero", "zero", "zero") and config.diffusion.line_std == (1.0, 1.0, 1.0)
    assert config.sampler.temperature == (1.0, 1.0, 1.0)
    assert config.data.prefetch == config_lib.default().data.prefetch


@pytest.mark.parametrize(
    "fields,named",
    [
        (dict(data__source="imagenet"), "config.data.source"),
        (dict(data__frame_size=60), "config.data.frame_size"),
        (dict(text__tokenizer="bpe"), "config.text.tokenizer"),
        (dict(unet__num_heads=3), "config.unet.num_heads"),
        (dict(unet__prompt_levels=(True,)), "config.unet.prompt_levels"),
        (dict(unet__channel_mults=(1, 1, 1, 1, 1), unet__prompt_levels=(True,) * 5), "config.unet.channel_mults"),
        (dict(unet__condition_fill=("zero", "linear")), "config.unet.condition_fill"),
        (dict(unet__condition_fill=("zero", "zero", "nearest")), "config.unet.condition_fill"),
        (dict(diffusion__line_std=(1.0, 0.5)), "config.diffusion.line_std"),
        (dict(diffusion__line_std=(1.0, 1.0, 0.0)), "config.diffusion.line_std"),
        (dict(diffusion__time_shift=0.0), "config.diffusion.time_shift"),
        (dict(diffusion__cond_noise=-1.0), "config.diffusion.cond_noise"),
        (dict(text__embedding_std=0.0), "config.text.embedding_std"),
        (dict(vae__channels=5), "config.vae.channels"),
        (dict(unet__channels=5, unet__num_heads=1), "config.unet.channels"),
        (dict(train__denoiser__clip_length=1), "config.train.denoiser.clip_length"),
        (dict(train__denoiser__pretrained_lr_ratio=-1.0), "config.train.denoiser.pretrained_lr_ratio"),
        (dict(train__image_vae__pretrained_lr_ratio=0.5), "config.train.image_vae.pretrained_lr_ratio"),
        (dict(sampler__steps=(8, 8)), "config.sampler.steps"),
        (dict(sampler__steps=(8, 8, 2000)), "config.sampler.steps"),
        (dict(hierarchy__segment_length=2), "config.hierarchy.segment_length"),
        (dict(hierarchy__overlap=16), "config.hierarchy.overlap"),
        (dict(diffusion__prediction="eps"), "config.diffusion.prediction"),
        (dict(diffusion__caption_dropout=1.5), "config.diffusion.caption_dropout"),
        (dict(vae__temporal_padding="reflect"), "config.vae.temporal_padding"),
        (dict(vae__temporal_init="random", train__stages=("image_vae", "denoiser")), "config.vae.temporal_init"),
        (dict(train__denoiser__optimizer="sgd"), "config.train.denoiser.optimizer"),
        (dict(train__denoiser__trainable="("), "config.train.denoiser.trainable"),
        (dict(train__image_vae__trainable="new"), "config.train.image_vae.trainable"),
        (dict(train__denoiser__accumulate=3), "config.train.denoiser.accumulate"),
        (dict(train__vae__clip_length=17), "config.train.vae.clip_length"),
        (dict(train__stages=("gan",)), "config.train.stages"),
        (dict(data__episode_frames=3000), "config.data.episode_frames"),
        (dict(text__num_heads=7), "config.text.num_heads"),
        (dict(text__per_frame=False, hierarchy__depth=1), "config.text.per_frame"),
        (dict(text__vocab_size=60), "config.text.vocab_size"),
        (dict(sampler__eta=1.5), "config.sampler.eta"),
        (dict(sampler__temperature=(1.0, 0.0)), "config.sampler.temperature"),
        (dict(sampler__temperature=(1.0, 0.0, -1.0)), "config.sampler.temperature"),
        (dict(sampler__window_temperature=-1.0), "config.sampler.temperature"),
        (dict(sampler__window_steps=0), "config.sampler.steps"),
        (dict(sampler__method="heun"), "config.sampler.method"),
        (dict(sampler__spacing="even"), "config.sampler.spacing"),
        (dict(sampler__guidance_rescale=2.0), "config.sampler.guidance_rescale"),
        (dict(sampler__threshold=99.5), "config.sampler.threshold"),
        (dict(sampler__method="ddpm", sampler__eta=1.0), "config.sampler.eta"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_field(fields, named):
    with pytest.raises(config_lib.ConfigError) as error:
        config_lib.validate(_changed(**fields))
    message = str(error.value)
    assert message.startswith(named + ":") and "\n" not in message and ";" in message


@pytest.mark.parametrize(
    "fields,named",
    [
        (dict(data__source="folder"), "config.data.path"),
        (dict(text__tokenizer="clip_bpe"), "config.text.vocabulary"),
        (dict(unet__num_heads=3), "config.unet.num_heads"),
    ],
)
def test_training_needs_more_than_a_valid_config(fields, named):
    with pytest.raises(config_lib.ConfigError, match=f"^{named}: .*;"):
        config_lib.validate_training(_changed(**fields))
    if named != "config.unet.num_heads":
        config_lib.validate(_changed(**fields))


def test_json_with_unknown_or_mistyped_fields_is_refused():
    values = json.loads(config_lib.to_json(config_lib.default()))
    values["unet"]["chanels"] = 3
    with pytest.raises(config_lib.ConfigError, match="config.unet.chanels: unknown key"):
        config_lib.from_json(json.dumps(values))
    del values["unet"]["chanels"]
    values["unet"]["channels"] = "many"
    with pytest.raises(config_lib.ConfigError, match="config.unet.channels"):
        config_lib.from_json(json.dumps(values))
    with pytest.raises(config_lib.ConfigError, match="not JSON"):
        config_lib.from_json("{")


def test_fields_added_since_keep_their_default():
    values = json.loads(config_lib.to_json(config_lib.default()))
    del values["sampler"]["eta"]
    assert config_lib.from_json(json.dumps(values)).sampler.eta == 0.0


def test_unknown_field_names_what_there_is():
    config_lib.check_field("unet.channels")
    with pytest.raises(config_lib.ConfigError, match="config.unet has .*channels"):
        config_lib.check_field("unet.width")
    with pytest.raises(config_lib.ConfigError, match="unknown key"):
        config_lib.check_field("unet.channels.more")
