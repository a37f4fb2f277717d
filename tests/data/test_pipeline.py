"""The batches are a function of (seed, batch number): not of hosts, threads, workers or restarts."""

import dataclasses
import itertools
import json
import multiprocessing
import os
import signal

import numpy as np
import pytest

from nuwaxl_jax import config as config_lib
from nuwaxl_jax.data import clips
from nuwaxl_jax.data import pipeline
from nuwaxl_jax.data import sources
from nuwaxl_jax.data import text


@dataclasses.dataclass(frozen=True)
class CountingSource:
    """Every frame says which it is: its pixels are (episode, frame // 256, frame % 256)."""

    lengths: tuple[int, ...] = (40,) * 13
    broken: int = -1

    def __len__(self):
        return len(self.lengths)

    def num_frames(self, i):
        return self.lengths[i]

    def fps(self, i):
        return 24.0

    def frames(self, i, index):
        if i == self.broken:
            raise ValueError(f"episode{i}.mp4 is damaged")
        frames = np.zeros((len(index), 4, 4, 3), np.uint8)
        frames[..., 0], frames[..., 1], frames[..., 2] = i, (index // 256)[:, None, None], (index % 256)[:, None, None]
        return frames

    def captions(self, i, index):
        return [f"star {frame // 7}" for frame in index.tolist()]


def tiny_config(**data):
    config = config_lib.default()
    config.hierarchy.update(segment_length=4, depth=3)
    config.train.vae.update(batch_size=8, clip_length=3)
    config.train.image_denoiser.update(batch_size=8, clip_length=3)
    config.train.denoiser.update(batch_size=8, clip_length=4)
    config.data.update(dict(num_threads=2, prefetch=1) | data)
    return config


def batches(num, config=None, stage="denoiser", seed=0, source=CountingSource(), state=None, **kwargs):
    iterator = pipeline.make_iterator(config or tiny_config(), "train", stage, seed=seed, source=source, **kwargs)
    if state is not None:
        iterator.set_state(state)
    try:
        return list(itertools.islice(iterator, num)), iterator.get_state()
    finally:
        iterator.close()


def assert_same(got, expected):
    assert len(got) == len(expected)
    for one, other in zip(got, expected):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("stage, length", [("image_vae", 1), ("vae", 3), ("denoiser", 4)])
def test_a_batch_holds_what_it_says(stage, length):
    config = tiny_config()
    (batch,), _ = batches(1, config, stage, batch_size=8)
    assert {name: (array.dtype, array.shape) for name, array in batch.items()} == {
        "frames": (np.uint8, (8, length, 4, 4, 3)),
        "tokens": (np.int32, (8, length, 20)),
        "level": (np.int32, (8,)),
        "episode": (np.int64, (8,)),
        "start": (np.int64, (8,)),
    }
    strides = np.array(clips.level_strides(4, 3))[batch["level"]]
    index = batch["start"][:, None] + np.arange(length) * strides[:, None]
    pixels = batch["frames"][:, :, 0, 0].astype(int)
    np.testing.assert_array_equal(pixels[:, :, 1] * 256 + pixels[:, :, 2], index)
    np.testing.assert_array_equal(pixels[:, :, 0], np.broadcast_to(batch["episode"][:, None], index.shape))
    tokenizer = text.make_tokenizer("words", vocab_size=512, max_tokens=20)
    expected = [tokenizer.encode_batch([f"star {frame // 7}" for frame in row]) for row in index.tolist()]
    np.testing.assert_array_equal(batch["tokens"], expected)
    if stage != "image_vae":
        assert len(set(batch["level"].tolist())) > 1


def test_image_stages_read_scattered_frames_with_their_captions():
    (batch,), _ = batches(1, tiny_config(), "image_denoiser", batch_size=8)
    pixels = batch["frames"][:, :, 0, 0].astype(int)
    index = pixels[:, :, 1] * 256 + pixels[:, :, 2]
    assert index.shape == (8, 3) and not batch["level"].any()
    np.testing.assert_array_equal(index[:, 0], batch["start"])
    assert len({tuple(np.diff(row)) for row in index.tolist()}) == 8  # no stride
    tokenizer = text.make_tokenizer("words", vocab_size=512, max_tokens=20)
    expected = [tokenizer.encode_batch([f"star {frame // 7}" for frame in row]) for row in index.tolist()]
    np.testing.assert_array_equal(batch["tokens"], expected)


@pytest.mark.parametrize("count", [2, 4])
def test_global_batch_is_the_same_on_any_number_of_processes(count):
    alone, _ = batches(6)
    parts = [batches(6, process_index=i, process_count=count)[0] for i in range(count)]
    together = [
        {name: np.concatenate([part[k][name] for part in parts]) for name in alone[0]} for k in range(len(alone))
    ]
    assert_same(together, alone)


@pytest.mark.parametrize("num_threads, prefetch", [(0, 0), (1, 1), (4, 3)])
def test_threads_do_not_matter(num_threads, prefetch):
    got, _ = batches(5, tiny_config(num_threads=num_threads, prefetch=prefetch))
    assert_same(got, batches(5)[0])


@pytest.mark.parametrize("at", [0, 1, 5])
def test_resume_equals_never_having_stopped(at):
    whole, _ = batches(9)
    _, state = batches(at)
    state = json.loads(json.dumps(state))
    assert_same(batches(9 - at, state=state)[0], whole[at:])
    half, _ = batches(9 - at, tiny_config(num_threads=0), state=state, process_index=1, process_count=2)
    assert_same(half, [{name: array[4:] for name, array in batch.items()} for batch in whole[at:]])


def test_state_moves_an_iterator_that_runs():
    iterator = pipeline.make_iterator(tiny_config(), "train", "denoiser", seed=0, source=CountingSource())
    first = [next(iterator) for _ in range(3)]
    state = iterator.get_state()
    ahead = [next(iterator) for _ in range(2)]
    iterator.set_state(state)
    assert_same([next(iterator) for _ in range(2)], ahead)
    iterator.set_state(dict(state, next_batch=0))
    assert_same([next(iterator) for _ in range(3)], first)
    iterator.close()
    iterator.close()
    with pytest.raises(ValueError, match="closed"):
        next(iterator)


@pytest.mark.parametrize(
    "name, kwargs",
    [
        ("seed", dict(seed=1)),
        ("batch_size", dict(batch_size=4)),
        ("stage", dict(stage="vae")),
        ("num_episodes", dict(source=CountingSource((40,) * 12))),
    ],
)
def test_state_of_other_data_is_refused(name, kwargs):
    _, state = batches(2)
    with pytest.raises(ValueError, match=f"{name} = "):
        batches(1, state=state, **kwargs)


def test_state_beyond_the_end_is_refused():
    _, state = batches(1, num_epochs=2)
    with pytest.raises(ValueError, match="batch 99 of 3"):
        batches(1, num_epochs=2, state=dict(state, next_batch=99))


def test_an_epoch_has_every_episode_once_and_the_next_is_another():
    epochs, _ = batches(100, batch_size=1, num_epochs=2)
    assert len(epochs) == 26
    order = [int(batch["episode"][0]) for batch in epochs]
    assert sorted(order[:13]) == sorted(order[13:]) == list(range(13))
    assert order[:13] != order[13:]
    clips_of = [
        {(int(b["episode"][0]), int(b["level"][0]), int(b["start"][0])) for b in half}
        for half in (epochs[:13], epochs[13:])
    ]
    assert clips_of[0] != clips_of[1]
    assert len(batches(100, batch_size=8, num_epochs=2)[0]) == 3  # the last, not full, is left out


def test_seeds_differ():
    one, other = batches(1, seed=0)[0][0], batches(1, seed=1)[0][0]
    assert not np.array_equal(one["episode"], other["episode"])


def test_short_episodes_are_left_out(capsys):
    source = CountingSource((3, 40, 2, 40, 12))
    got, state = batches(8, source=source)
    assert set(np.concatenate([batch["episode"] for batch in got]).tolist()) == {1, 3, 4}
    assert state["num_episodes"] == 3
    printed = capsys.readouterr().out
    assert "of 5 episodes, 2 are long enough for level 0, 3 are long enough for level 1, 3" in printed
    with pytest.raises(ValueError, match="2 found -> 0 of at least 4 frames"):
        batches(1, source=CountingSource((3, 2)))


def test_a_level_without_any_episode_is_refused():
    source = CountingSource((12, 12))
    with pytest.raises(ValueError, match="0 are long enough for level 0.*28 frames.*level_weights"):
        batches(1, source=source)
    (batch,), _ = batches(1, tiny_config(level_weights=(0.0, 1.0, 1.0)), source=source)
    assert set(batch["level"].tolist()) == {1, 2}
    batches(1, stage="vae", source=source)


def test_errors_of_a_source_reach_the_caller():
    with pytest.raises(ValueError, match="episode5.mp4 is damaged"):
        batches(13, batch_size=1, source=CountingSource(broken=5))


@pytest.mark.parametrize(
    "kwargs, name",
    [
        (dict(stage="gan"), "train.gan"),
        (dict(batch_size=6, process_count=4), "train.denoiser.batch_size"),
        (dict(process_index=2, process_count=2), "process_index"),
        (dict(batch_size=32, num_epochs=2), "do not fill one batch"),
    ],
)
def test_bad_arguments_are_named(kwargs, name):
    with pytest.raises(ValueError, match=name):
        batches(1, **kwargs)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="data.num_threads"):
        batches(1, tiny_config(num_threads=-1))
    config = tiny_config()
    config.data.source = "web"
    with pytest.raises(ValueError, match="data.source.*folder.*toons"):
        pipeline.make_source(config, "train")
    with pytest.raises(ValueError, match="split"):
        pipeline.make_source(tiny_config(), "dev")


def test_toons():
    config = tiny_config(frame_size=16, episode_frames=64, num_episodes=50, num_eval_episodes=3)
    source = pipeline.make_source(config, "valid")
    assert isinstance(source, sources.EpisodeSource) and len(source) == 3
    (batch,), _ = batches(1, config, source=None)
    assert batch["frames"].shape == (8, 4, 16, 16, 3)
    known = text.WordTokenizer(512, 20)
    assert all("<" not in known.decode(tokens) for tokens in batch["tokens"].reshape(-1, 20))
    config.text.max_tokens = 40
    longest = max((np.count_nonzero(row) for row in batches(4, config, source=None)[0][0]["tokens"].reshape(-1, 40)))
    assert longest <= 20, "a caption of the toons does not fit into text.max_tokens"


@pytest.mark.slow
def test_worker_processes_do_not_matter():
    config = tiny_config(frame_size=16, episode_frames=64, num_episodes=50)
    expected, _ = batches(7, config, source=None)
    config.data.num_workers = 2
    iterator = pipeline.make_iterator(config, "train", "denoiser", seed=0)
    got = [next(iterator)]
    for worker in multiprocessing.active_children():  # as when a whole group of processes is told to stop
        os.kill(worker.pid, signal.SIGTERM)
    got += [next(iterator) for _ in range(3)]
    state = iterator.get_state()
    got += [next(iterator) for _ in range(3)]
    iterator.close()
    assert_same(got, expected)
    assert_same(batches(3, config, source=None, state=state)[0], expected[4:])
    config.data.num_workers = 0  # saved with two, resumed with none
    assert_same(batches(3, config, source=None, state=state)[0], expected[4:])
