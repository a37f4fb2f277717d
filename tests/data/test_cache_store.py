"""The files of a latent cache: whole or not there, of one key, and safe with several writers."""

import os
import random
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from nuwaxl_jax.data.cache import elements
from nuwaxl_jax.data.cache import store

KEY = {"seed": 3, "data": {"fps": 0.0, "level_weights": (1.0, 2.0)}, "vae": "a" * 64}

# Fills a folder as the encoder does, slowly enough to be killed in the middle.
WRITER = """
import sys, time
import numpy as np
from nuwaxl_jax.data.cache import store
folder = store.Folder.create(sys.argv[1], {"seed": 0}, 6 * store.SHARD)
print("begun", flush=True)
def shard(number):
    for i in range(number * store.SHARD, (number + 1) * store.SHARD):
        time.sleep(float(sys.argv[2]))
        yield {"moments": np.random.default_rng(i).normal(size=(4, 8)).astype(np.float32), "level": np.int32(i)}
for wait in (None, lambda: None):
    for number in folder.missing():
        with folder.claim(number, wait) as mine:
            if mine:
                folder.write(number, shard(number))
                print(number, flush=True)
"""


def element(i, level=1):
    rng = np.random.default_rng(i)
    return {
        "moments": rng.normal(size=(4, 2, 2, 6)).astype(np.float32),
        "tokens": rng.integers(0, 9, (4, 5)).astype(np.int32),
        "level": np.int32(level),
        "episode": np.int64(i),
        "start": np.int64(7 * i),
    }


def filled(path, count=2 * store.SHARD, key=KEY):
    folder = store.Folder.create(path, key, count)
    for number in folder.missing():
        folder.write(number, (element(number * store.SHARD + i) for i in range(store.SHARD)))
    return folder


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == value.dtype
        np.testing.assert_array_equal(got[name], value)


def test_what_is_read_is_what_was_written(tmp_path):
    examples = store.Examples(filled(tmp_path))
    assert len(examples) == 128
    for i in (0, 63, 64, 127):
        assert_same(examples[i], element(i))


def test_a_key_that_differs_is_refused_by_field(tmp_path):
    filled(tmp_path)
    store.Folder.open(tmp_path, KEY)
    changed = {**KEY, "data": {"fps": 12.0, "level_weights": (1.0, 2.0)}, "vae": "b" * 64}
    with pytest.raises(store.CacheError, match=r"data\.fps 0\.0 -> 12\.0; vae 'aaaaaaaa..' -> 'bbbbbbbb..'"):
        store.Folder.open(tmp_path, changed)
    with pytest.raises(store.CacheError, match="made of something else"):
        store.Folder.create(tmp_path, changed, 64)
    with pytest.raises(store.CacheError, match="holds no cache; make it with --mode=data --cache"):
        store.Folder.open(tmp_path / "elsewhere", KEY)


def test_more_examples_are_added_to_those_that_are_there(tmp_path):
    folder = filled(tmp_path, 40)
    assert folder.count == 64
    before = os.stat(folder.shard(0)).st_mtime_ns
    grown = store.Folder.create(tmp_path, KEY, 65)
    assert grown.count == 128 and grown.missing() == [1]
    with pytest.raises(store.CacheError, match="has 1 of 2 shards; --mode=data --cache with the same flags goes on"):
        store.Examples(grown)
    assert store.Folder.create(tmp_path, KEY, 10).count == 128  # never fewer
    assert len(store.Examples(filled(tmp_path, 65))) == 128
    assert os.stat(folder.shard(0)).st_mtime_ns == before


def test_damage_is_found_and_named(tmp_path):
    folder = filled(tmp_path)
    whole = folder.shard(1).read_bytes()
    folder.shard(1).write_bytes(whole[: len(whole) // 3])
    with pytest.raises(store.CacheError, match=r"00001\.array_record is damaged"):
        store.Examples(folder)
    found = 0
    for place in range(200, len(whole) - 200, len(whole) // 40):  # most bytes of the file are padding
        flipped = bytearray(whole)
        flipped[place] ^= 255
        folder.shard(1).write_bytes(flipped)
        try:
            examples = store.Examples(folder)
            for i in range(64, 128):
                assert_same(examples[i], element(i))
        except store.CacheError as error:
            assert "00001.array_record" in str(error)
            found += 1
    assert found
    with pytest.raises(store.CacheError, match="damaged"):
        store.unpack(store.pack(element(1))[:-1] + b"\0\0", "here")


def test_a_shard_is_written_whole_or_not_at_all(tmp_path):
    folder = store.Folder.create(tmp_path, KEY, 64)
    with pytest.raises(store.CacheError, match="63 examples made"):
        folder.write(0, (element(i) for i in range(63)))

    def fails():
        yield element(0)
        raise ValueError("decoder")

    with pytest.raises(ValueError, match="decoder"):
        folder.write(0, fails())
    assert sorted(os.listdir(tmp_path)) == [store.HEADER]


def test_a_full_disk_is_one_line_and_what_was_complete_stays(tmp_path):
    folder = filled(tmp_path, 64)
    grown = store.Folder.create(tmp_path, KEY, 128)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # writing on fails as on a full disk
    try:
        with pytest.raises(store.CacheError, match="cannot be written .*; what is complete there is kept"):
            grown.write(1, ({"moments": np.random.default_rng(i).normal(size=4000)} for i in range(store.SHARD)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert sorted(os.listdir(tmp_path)) == ["00000.array_record", store.HEADER]
    assert_same(store.Examples(folder)[5], element(5))


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "cache", "/proc/cache"):
        with pytest.raises(store.CacheError, match="cannot be written"):
            store.Folder.create(place, KEY, 64)


def test_examples_come_in_order_then_shuffled_and_all_once_an_epoch(tmp_path):
    epochs = store.Epochs(store.Examples(filled(tmp_path)), seed=5)
    numbers = [int(epochs[i]["episode"]) for i in range(3 * 128)]
    assert numbers[:128] == list(range(128))
    second, third = numbers[128:256], numbers[256:]
    assert sorted(second) == sorted(third) == list(range(128)) and second != third != numbers[:128]
    again = store.Epochs(store.Examples(filled(tmp_path)), seed=5)
    assert int(again[300]["episode"]) == numbers[300]


def test_prompts_are_kept_once_and_masked_videos_for_local_clips_alone():
    one = element(1)
    one["tokens"][2:] = one["tokens"][0]
    states = one["tokens"][..., None] * np.ones(3, np.float32)
    masked = np.ones((2, 4, 2, 2, 6), np.float32)
    record = elements.kept(one, one["moments"], masked, states)
    assert record["states"].shape == (2, 5, 3)
    read = elements.read(store.unpack(store.pack(record), ""))
    np.testing.assert_array_equal(read["text"], states)
    np.testing.assert_array_equal(read["masked"], masked)
    record = elements.kept(element(1, level=0), one["moments"], masked)
    assert "masked" not in record
    assert read.keys() - {"text"} == elements.read(record).keys()
    assert not elements.read(record)["masked"].any() and elements.read(record)["masked"].shape == masked.shape


def _writer(path, pause):
    command = [sys.executable, "-c", WRITER, str(path), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _content(path):
    return {name: (path / name).read_bytes() for name in os.listdir(path) if name.endswith(".array_record")}


@pytest.mark.slow
def test_killed_at_ten_random_moments_it_goes_on_and_ends_as_if_undisturbed(tmp_path):
    rng, seen = random.Random(0), []
    for kill in range(10):
        writer = _writer(tmp_path / "killed", 0.002)
        assert writer.stdout.readline() == "begun\n"
        while writer.poll() is None and len(_content(tmp_path / "killed")) < kill // 4:  # the first before any is done
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.1))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        there = _content(tmp_path / "killed")
        assert all(there[name] == content for name, content in (seen[-1] if seen else {}).items())  # nothing lost
        seen.append(there)
    last, other = _writer(tmp_path / "killed", 0), _writer(tmp_path / "whole", 0)
    assert last.communicate() and other.communicate() and last.returncode == other.returncode == 0
    assert len(_content(tmp_path / "whole")) == 6 and _content(tmp_path / "killed") == _content(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path / "killed")) == sorted(os.listdir(tmp_path / "whole"))  # nothing left behind
    assert 0 < len(seen[-1])


def test_two_writers_share_the_work(tmp_path):
    writers = [_writer(tmp_path / "two", 0.004) for _ in range(2)]
    said = [writer.communicate()[0].split()[1:] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert sorted(said[0] + said[1]) == list("012345") and said[0] and said[1]  # each shard once
    assert len(store.Examples(store.Folder.open(tmp_path / "two", {"seed": 0}))) == 6 * store.SHARD
