"""CLIP for the similarity of frames and captions: against transformers, and folders that hold no such model."""

import json
import sys

import jax
import numpy as np
from PIL import Image
import pytest
from safetensors import numpy as safetensors_numpy

from nuwaxl_jax.data import clip_bpe
from nuwaxl_jax.evaluation.features import clip as clip_lib
from nuwaxl_jax.evaluation.features import networks

LETTERS = "abcdefghijklmnopqrstuvwxyz"
CAPTIONS = ["a cat", "the cat sat on a mat and then on the bat", "zzz", "a cat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a tokenizer; `_tiny` puts a model into it."""
    place = tmp_path_factory.mktemp("clip")
    tokens = [*LETTERS, *(c + "</w>" for c in LETTERS), "at</w>", "cat</w>", clip_bpe.BOS, clip_bpe.EOS]
    (place / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (place / "merges.txt").write_text("#version: 0.2\na t</w>\nc at</w>\n")
    return place, len(tokens)


SIZES = dict(hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)


def _settings(vocabulary, **changed):
    text = dict(SIZES, vocab_size=vocabulary, max_position_embeddings=16, hidden_act="quick_gelu")
    vision = dict(SIZES, image_size=32, patch_size=8, hidden_act="quick_gelu")
    return dict(text_config=text | changed, vision_config=vision, projection_dim=16)


def _bare(place, settings, tensors=None):
    place.mkdir()
    (place / "config.json").write_text(json.dumps(settings))
    safetensors_numpy.save_file(tensors or {"a": np.zeros(2, np.float32)}, place / "model.safetensors")
    return place


def test_folders_of_no_model_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no config.json; give the folder of a CLIP model as transformers has"):
        clip_lib.read(tmp_path)
    with pytest.raises(ValueError, match="--clip: nowhere does not exist"):
        networks.Similarity("nowhere")


def test_another_activation_is_refused(tmp_path):
    place = _bare(tmp_path / "a", _settings(54, hidden_act="gelu"))
    with pytest.raises(ValueError, match="config.json: hidden_act is gelu; only quick_gelu, OpenAI's, is known here"):
        clip_lib.read(place)


def test_models_without_both_towers_are_refused(tmp_path):
    settings = _settings(54)
    with pytest.raises(ValueError, match="no CLIP model with both towers, 'text_model.*embedding.weight' is missing"):
        clip_lib.read(_bare(tmp_path / "a", settings))
    del settings["vision_config"]
    with pytest.raises(ValueError, match="no CLIP model with both towers, 'vision_config' is missing"):
        clip_lib.read(_bare(tmp_path / "b", settings))


def test_a_missing_tensor_is_named(tmp_path, folder):
    place, count = folder
    shapes = {"text_model.embeddings.token_embedding.weight": (count, 32)}
    shapes["vision_model.embeddings.patch_embedding.weight"] = (32, 3, 8, 8)
    bare = _bare(tmp_path / "a", _settings(count), {name: np.zeros(s, np.float32) for name, s in shapes.items()})
    for name in ("vocab.json", "merges.txt"):
        (bare / name).write_text((place / name).read_text())
    with pytest.raises(ValueError, match="vision_model.embeddings.class_embedding is missing"):
        clip_lib.read(bare)


def _expected_pixels(frames, size):
    """Shorter side to `size`, bicubic in PIL, then the middle: as CLIP's authors do it."""
    out = []
    for frame in frames:
        height, width = frame.shape[:2]
        short = min(height, width)
        resized = Image.fromarray(frame).resize((width * size // short, height * size // short), Image.BICUBIC)
        left, top = (resized.width - size) // 2, (resized.height - size) // 2
        out.append(np.asarray(resized.crop((left, top, left + size, top + size)), np.float64) / 255)
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    return (np.stack(out) - mean) / deviation


def _frames(height, width, count=3):
    frames = np.random.default_rng(0).integers(0, 256, size=(count, height, width, 3)).astype(np.uint8)
    frames[1] = np.linspace(0, 255, width).astype(np.uint8)[:, None]
    return frames


@pytest.fixture(scope="module")
def theirs(folder):
    """transformers' model of random numbers, saved in the folder; it must not see a torchvision of another build."""
    torch = pytest.importorskip("torch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchvision", None)
        transformers = pytest.importorskip("transformers")
        yield _model(torch, transformers, *folder)


def _model(torch, transformers, place, count):
    marks = dict(bos_token_id=count - 2, eos_token_id=count - 1, pad_token_id=count - 1)
    settings = _settings(count, **marks)
    torch.manual_seed(0)
    model = transformers.CLIPModel(transformers.CLIPConfig(**settings)).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():  # biases and norms too
            value += 0.1 * torch.randn(value.shape)
    model.save_pretrained(place)
    return model


@pytest.fixture(scope="module")
def ours(theirs, folder):
    return clip_lib.read(folder[0])


def _embedded(made):
    """Of what newer versions of transformers wrap."""
    return (made if hasattr(made, "detach") else made.pooler_output).detach().numpy()


@pytest.mark.parity
def test_both_towers_equal_transformers(theirs, ours, equals_original):
    torch = pytest.importorskip("torch")
    pixels = np.random.default_rng(1).normal(size=(3, 32, 32, 3)).astype(np.float32)
    wanted = _embedded(theirs.get_image_features(torch.from_numpy(pixels.transpose(0, 3, 1, 2))))
    made = jax.jit(ours.image.apply)({"params": ours.image_params}, pixels)
    equals_original("CLIP's image tower, transformers", made, wanted, 1e-4)
    tokens = ours.tokens(CAPTIONS)
    assert len({tuple(row) for row in tokens}) == 3
    wanted = _embedded(theirs.get_text_features(torch.from_numpy(tokens.astype(np.int64))))
    made = jax.jit(ours.text.apply)({"params": ours.text_params}, tokens)
    equals_original("CLIP's text tower, transformers", made, wanted, 1e-4)


@pytest.mark.parity
def test_tokens_equal_transformers(ours, folder):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(str(folder[0]), model_max_length=16)
    wanted = tokenizer(CAPTIONS, padding="max_length", truncation=True, max_length=16)["input_ids"]
    np.testing.assert_array_equal(ours.tokens(CAPTIONS), wanted)


@pytest.mark.parity
def test_similarity_is_the_cosine(theirs, ours, folder, equals_original):
    torch = pytest.importorskip("torch")
    frames = _frames(40, 56, len(CAPTIONS))
    pixels = torch.from_numpy(_expected_pixels(frames, 32).astype(np.float32).transpose(0, 3, 1, 2))
    tokens = torch.from_numpy(ours.tokens(CAPTIONS).astype(np.int64))
    seen, told = _embedded(theirs.get_image_features(pixels)), _embedded(theirs.get_text_features(tokens))
    wanted = (seen * told).sum(1) / np.linalg.norm(seen, axis=1) / np.linalg.norm(told, axis=1)
    similarity = networks.Similarity(str(folder[0]))
    equals_original("CLIP's similarity, transformers", similarity(frames, CAPTIONS), wanted, 1e-4)
    order = [2, 0, 3, 1]  # of each frame with its own caption, in any order
    np.testing.assert_allclose(
        similarity(frames[order], [CAPTIONS[i] for i in order]), wanted[order], rtol=1e-4, atol=1e-5
    )
    assert similarity.protocol()["weights"] == ours.sha256 and len(ours.sha256) == 64


@pytest.mark.parity
@pytest.mark.parametrize("height, width", [(40, 56), (100, 37), (20, 31), (32, 32), (33, 49)])
def test_pixels_equal_transformers(ours, equals_original, height, width):
    frames = _frames(height, width)
    made = ours.pixels(frames)
    equals_original("CLIP's pixels, the formula in PIL", made, _expected_pixels(frames, 32), 1e-5)
    processor = _processor()
    if processor is not None:
        wanted = processor(list(frames), return_tensors="np", input_data_format="channels_last")["pixel_values"]
        equals_original("CLIP's pixels, transformers", made, wanted.transpose(0, 2, 3, 1), 1e-5)


def _processor():
    """transformers' in PIL; None where it has only torchvision's."""
    try:
        from transformers.models.clip import image_processing_pil_clip as found

        name = "CLIPImageProcessorPil"
    except ImportError:
        try:
            from transformers.models.clip import image_processing_clip as found

            name = "CLIPImageProcessor"
        except (ImportError, RuntimeError):
            return None
    return getattr(found, name)(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
