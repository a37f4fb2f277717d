"""--mode=import and --mode=export: whole folders and single files, there and back, and what is refused."""

import json
import shutil

from flax import traverse_util
import jax
import numpy as np
import pytest
import safetensors.numpy

from nuwaxl_jax import weights
from nuwaxl_jax.data import clip_bpe
from nuwaxl_jax.importing import export
from nuwaxl_jax.importing import run
from nuwaxl_jax.importing import tensors
from nuwaxl_jax.training import initial


def image_part(name):
    return not any(word in name for word in ("temporal", "injection", "cond_down"))


@pytest.mark.parametrize("style, dtype", [("diffusers", "float16"), ("ldm", "float32")])
def test_image_parts_come_back_bit_for_bit(tmp_path, config, bundle, tokenizer, style, dtype, capsys):
    original = tmp_path / "ours.safetensors"
    weights.save(original, bundle, config, {}, dtype=dtype)
    theirs = tmp_path / ("pipeline" if style == "diffusers" else "single.safetensors")
    export.run(original, str(theirs), style)
    given = {} if style == "diffusers" else {"tokenizer": tokenizer}
    back = tmp_path / "back.safetensors"
    run.run(config, str(theirs), given, str(back), dry_run=True)
    assert "everything fits" in capsys.readouterr().out and not back.exists()
    run.run(config, str(theirs), given, str(back))
    printed = capsys.readouterr().out
    assert "missing" not in printed and "misshapen" not in printed and "unexpected" not in printed
    first, _, card = weights.load(original)
    second, read, again = weights.load(back)
    assert card["dtype"] == again["dtype"] and read.text.vocabulary == str(back)
    before = traverse_util.flatten_dict({**first, "denoisers": first["denoisers"][0]}, sep="/")
    after = traverse_util.flatten_dict({**second, "denoisers": second["denoisers"][0]}, sep="/")
    assert before.keys() == after.keys()
    images = [name for name in before if image_part(name)]
    # The last level has no transformer in their layout: its own stays new.
    images = [n for n in images if "transformer" not in n or "mid" in n or "down1" not in n and "up1" not in n]
    assert len(images) > 150
    for name in images:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    other = tmp_path / "again"
    export.run(back, str(other), style)
    one, two = (tensors.Tensors(p / "unet" if style == "diffusers" else p) for p in (theirs, other))
    assert one.dtypes == two.dtypes and set(one.dtypes.values()) <= {"F16" if "16" in card["dtype"] else "F32", "F32"}
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    # The vocabulary travels in the file.
    ours, carried = (clip_bpe.CLIPTokenizer(64, 9, path) for path in (tokenizer, str(back)))
    np.testing.assert_array_equal(ours.encode("a cat"), carried.encode("a cat"))


def spoilt(pipeline, tmp_path, part, change):
    place = tmp_path / "spoilt"
    shutil.copytree(pipeline, place)
    file = next((place / part).glob("*.safetensors"))
    content = safetensors.numpy.load_file(file)
    change(content)
    safetensors.numpy.save_file(content, file)
    return place


def test_what_does_not_fit_is_listed_by_name(tmp_path, config, pipeline, capsys):
    def change(content):
        content["a.stranger"] = np.zeros(3, np.float32)
        del content["mid_block.resnets.0.norm1.weight"]
        content["conv_in.weight"] = content["conv_in.weight"][:, :2]

    place = spoilt(pipeline, tmp_path, "unet", change)
    out = tmp_path / "w.safetensors"
    with pytest.raises(tensors.WeightsError, match="^import: unet: 1 tensors are missing, 1 misshapen"):
        run.run(config, str(place), {}, str(out))
    printed = capsys.readouterr().out
    assert "unexpected: a.stranger" in printed and "missing: mid_block.resnets.0.norm1.weight" in printed
    assert "misshapen: conv_in.weight" in printed and "(3, 3, 4, 64)" in printed and not out.exists()


OLDER = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.mark.parametrize("halves", [("encoder", "decoder"), ("decoder",)])
def test_older_names_of_the_vaes_attention(tmp_path, config, pipeline, halves, capsys):
    def change(content):
        for half in halves:
            place = f"{half}.mid_block.attentions.0"
            for new, old in OLDER.items():
                for kind in ("weight", "bias"):
                    content[f"{place}.{old}.{kind}"] = content.pop(f"{place}.{new}.{kind}")

    old = spoilt(pipeline, tmp_path, "vae", change)
    read = []
    for place, out in ((pipeline, "new.safetensors"), (old, "old.safetensors")):
        run.run(config, str(place), {}, str(tmp_path / out))
        printed = capsys.readouterr().out
        assert "unexpected" not in printed and "missing" not in printed
        read.append(traverse_util.flatten_dict(weights.load(tmp_path / out, only=("vae/",))[0]["vae"], sep="/"))
    assert read[0].keys() == read[1].keys()
    for name, value in read[0].items():
        np.testing.assert_array_equal(value, read[1][name], err_msg=name)


def test_what_the_older_names_lack_is_listed_by_them(tmp_path, config, pipeline, capsys):
    def change(content):
        place = "encoder.mid_block.attentions.0"
        content[f"{place}.query.weight"] = content.pop(f"{place}.to_q.weight")

    with pytest.raises(tensors.WeightsError, match="^import: vae: 7 tensors are missing"):
        place = spoilt(pipeline, tmp_path, "vae", change)
        run.run(config, str(place), {}, str(tmp_path / "w.safetensors"))
    printed = capsys.readouterr().out
    assert "missing: encoder.mid_block.attentions.0.proj_attn.bias" in printed
    assert "unexpected: encoder.mid_block.attentions.0.to_k.weight" in printed


@pytest.mark.parametrize(
    "file, key, value, named",
    [
        ("unet/config.json", "attention_head_dim", 8, "config.unet.num_heads"),
        ("text_encoder/config.json", "hidden_act", "gelu", "hidden_act='gelu'"),
        ("scheduler/scheduler_config.json", "prediction_type", "v_prediction", "config.diffusion.prediction"),
        ("scheduler/scheduler_config.json", "beta_schedule", "linear", "config.diffusion.schedule"),
    ],
)
def test_settings_that_shapes_do_not_tell(tmp_path, config, pipeline, file, key, value, named):
    place = tmp_path / "p"
    shutil.copytree(pipeline, place)
    settings = json.loads((place / file).read_text())
    (place / file).write_text(json.dumps(settings | {key: value}))
    with pytest.raises(tensors.WeightsError, match=named) as error:
        run.run(config, str(place), {}, str(tmp_path / "w.safetensors"))
    assert "\n" not in str(error.value)


def test_a_lone_part_and_no_tokenizer_are_refused(tmp_path, config, pipeline):
    with pytest.raises(tensors.WeightsError, match="give --tokenizer"):
        run.run(config, "", {p: str(pipeline / p) for p in ("vae", "unet", "text_encoder")}, str(tmp_path / "w"))
    with pytest.raises(tensors.WeightsError, match="3 problems"):
        run.run(config, "", {"vae": str(pipeline / "vae")}, str(tmp_path / "w"))
    with pytest.raises(tensors.WeightsError, match="is a pickle"):
        (tmp_path / "sd.ckpt").write_bytes(b"")
        run.run(config, str(tmp_path / "sd.ckpt"), {}, str(tmp_path / "w"))


def test_a_damaged_settings_file_is_named(tmp_path, config, pipeline):
    place = tmp_path / "p"
    shutil.copytree(pipeline, place)
    (place / "unet" / "config.json").write_text("{")
    with pytest.raises(tensors.WeightsError, match="unet/config.json: is no JSON"):
        run.run(config, str(place), {}, str(tmp_path / "w.safetensors"))


def test_networks_without_an_equal_are_refused(tmp_path):
    with pytest.raises(tensors.WeightsError, match="config.vae.channels: these networks have no equal"):
        export.run(weights.find("shipped"), str(tmp_path / "x"), "diffusers")
    assert not list(tmp_path.iterdir())


def test_a_run_starts_from_the_file(config, original, capsys):
    config = config.copy_and_resolve_references()
    config.train.init_from = str(original)
    first, _, _ = weights.load(original)
    for stage, wanted in (("vae", first["vae"]), ("denoiser_2", first["denoisers"][0])):
        made = initial.params_of(config, stage, stage.split("_")[0], level=2)
        assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), made, wanted))
    np.testing.assert_array_equal(initial.latent_stats_of(config)["latent_scale"], first["latent_scale"])
    config.mtd.weights = "shared"  # a level embedding that the file lacks
    made = initial.params_of(config, "denoiser", "denoiser")
    assert not np.any(made["unet"]["level_embedding"]["embedding"])
    assert "level_embedding" in capsys.readouterr().out
    config.unet.cond_channels = 8
    with pytest.raises(ValueError, match="^train.init_from: unet/cond_down1/bias has shape"):
        initial.params_of(config, "denoiser", "denoiser")
