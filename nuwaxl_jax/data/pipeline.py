"""Batches for training: one element is a pure function of (seed, item number).

    episodes -> seed -> shuffle -> repeat -> draw and read a clip
             -> rows of this process -> threads or worker processes -> batch

Nothing is random after the item number is fixed, so threads, worker processes,
restarts and the number of hosts change only the speed. A video that cannot be read is replaced by another that the same
item draws (`data.reading`). Global batch k holds the
items k B, ..., (k+1) B - 1; process p of P yields its rows p B/P, ..., so that
the processes' rows, put together in process order, are the same array for any P.
The cut into processes is the last step before reading: every host shuffles the
same global list.

The position of an iterator is therefore one number, the next batch. Its state
is a small JSON dict, the same on every host, and it may be restored with other
numbers of processes, workers or threads.
"""

from collections.abc import Iterator
import dataclasses
import multiprocessing
import os
import signal
import sys
import threading
from typing import Any

from absl import flags
import grain
import ml_collections
import numpy as np

from nuwaxl_jax import config_rules
from nuwaxl_jax.data import clips
from nuwaxl_jax.data import reading
from nuwaxl_jax.data import sources
from nuwaxl_jax.data import text
from nuwaxl_jax.data import videos
from nuwaxl_jax.data.cache import store
from nuwaxl_jax.data.intake import survey
from nuwaxl_jax.data.prepared import source as prepared_source
from nuwaxl_jax.data.toons import source as toons_source

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class ProcessRows:
    """The items of one process, from batch `first_batch` on; a random-access source for grain."""

    items: Any  # elements by number
    local_batch: int
    process_index: int
    process_count: int
    first_batch: int
    num_batches: int

    def __len__(self) -> int:
        return (self.num_batches - self.first_batch) * self.local_batch

    def __getitem__(self, index: int) -> Batch:
        batch, row = divmod(int(index), self.local_batch)
        batch_size = self.local_batch * self.process_count
        return self.items[(self.first_batch + batch) * batch_size + self.process_index * self.local_batch + row]


def _begin_worker(index: int, count: int) -> None:
    """In a worker process: it ends with the process of the job, and not before, though signals go to a whole group."""
    del index, count
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def end() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


@dataclasses.dataclass(frozen=True)
class ReadPlan:
    """How elements are read: by `num_threads` threads, or by `num_workers` processes, `prefetch` batches ahead."""

    num_workers: int = 0
    num_threads: int = 2
    prefetch: int = 2

    def __post_init__(self):
        for name in ("num_workers", "num_threads", "prefetch"):
            if getattr(self, name) < 0:
                raise ValueError(f"data.{name} is {getattr(self, name)}; it must be 0 or more.")

    def start(self, rows: ProcessRows) -> grain.DatasetIterator:
        """An iterator over batches of `rows`."""
        ahead = self.prefetch * rows.local_batch
        buffer = max(ahead, self.num_threads) if ahead and self.num_threads else 0
        options = grain.ReadOptions(num_threads=self.num_threads if buffer else 0, prefetch_buffer_size=buffer)
        if self.num_workers:
            options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        dataset = grain.MapDataset.source(rows).to_iter_dataset(options)
        if self.num_workers:
            if not flags.FLAGS.is_parsed():  # grain hands the flags to its workers
                flags.FLAGS.mark_as_parsed()
            dataset = dataset.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=self.num_workers, per_worker_buffer_size=max(1, ahead // self.num_workers)
                ),
                worker_init_fn=_begin_worker,
            )
        # Batching comes after the workers: they take items in turn, so the order is that of one process.
        return iter(dataset.batch(rows.local_batch, drop_remainder=True))


class ClipIterator(grain.DatasetIterator):
    """Iterates over this process's share of the global batches; not thread-safe.

    `get_state` is a JSON dict; `set_state` also checks that seed, batch size and
    data are those the state was saved with. Close it when done.

    Attributes:
      bad_files: what could not be read so far, by this process.
    """

    def __init__(self, rows: ProcessRows, plan: ReadPlan, identity: dict[str, Any], bad_files: reading.BadFiles):
        super().__init__()
        self.bad_files = bad_files
        self._rows = rows
        self._plan = plan
        self._identity = dict(identity)
        self._next_batch = 0
        self._batches = None

    def __iter__(self) -> "ClipIterator":
        return self

    def __len__(self) -> int:
        """Number of batches from the first to the last (sys.maxsize where there is no last)."""
        return self._rows.num_batches

    def __next__(self) -> Batch:
        if self._closed:
            raise ValueError("the data iterator is closed.")
        self.start_prefetch()
        batch = next(self._batches)
        if "bad" in batch:
            self.bad_files.note(batch.pop("bad"))
        self._next_batch += 1
        return batch

    def start_prefetch(self) -> None:
        """Starts the threads or workers, so that the first batch is read in the background."""
        if self._batches is None:
            self._batches = self._plan.start(dataclasses.replace(self._rows, first_batch=self._next_batch))
            self._batches.start_prefetch()

    def get_state(self) -> dict[str, Any]:
        """The position, as a JSON dict that is the same on every process."""
        return {"next_batch": self._next_batch, **self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues at a saved position.

        Raises:
          ValueError: where the state belongs to other data, naming the field.
        """
        for name in sorted({*self._identity, *state} - {"next_batch"}):
            saved, value = state.get(name), self._identity.get(name)
            if saved != value:
                raise ValueError(
                    f"the saved data position has {name} = {saved!r}, this run has {value!r}; "
                    "resume with the same settings and data, or start a new workdir."
                )
        position = int(state["next_batch"])
        if not 0 <= position <= self._rows.num_batches:
            raise ValueError(f"the saved data position is batch {position} of {self._rows.num_batches}.")
        self._stop()
        self._next_batch = position

    def close(self) -> None:
        """Stops threads and workers; a second call does nothing."""
        self._closed = True
        self._stop()

    def _stop(self):
        if self._batches is not None:
            self._batches.close()
            self._batches = None


def _check_levels(sampler: clips.ClipSampler, lengths: np.ndarray, stage: str) -> None:
    """Says how many episodes each level can use; a denoiser that would never see one of its levels is refused."""
    coverage = clips.level_coverage(sampler, lengths)
    if sampler.single or min(coverage.values()) == len(lengths):
        return
    report = f"train.{stage}: of {len(lengths)} episodes, " + ", ".join(
        f"{count} are long enough for level {level}" for level, count in coverage.items()
    )
    if stage == "denoiser" and min(coverage.values()) == 0:
        raise ValueError(
            f"{report} (level 0 needs {clips.window_frames(sampler.segment_length, sampler.depth)} frames, the longest "
            f"has {lengths.max()}). Give longer videos, lower hierarchy.depth, or set the level's weight in "
            "data.level_weights to 0."
        )
    print(report + ".")


def make_source(config: ml_collections.ConfigDict, split: str) -> sources.EpisodeSource:
    """The episodes of `config.data` for `split` ('train', 'valid' or 'test')."""
    if config.data.source not in SOURCES:
        raise ValueError(f"data.source is {config.data.source!r}; choose one of {sorted(SOURCES)}.")
    if split not in survey.SPLITS:
        raise ValueError(f"split is {split!r}; choose one of {survey.SPLITS}.")
    return SOURCES[config.data.source](config, split)


@dataclasses.dataclass(frozen=True)
class Items:
    """The endless list of examples of a stage: item i is a function of (seed, i) and the videos.

    Attributes:
      dataset: of elements, by number.
      source: they are read from.
      num_episodes: long enough to be used.
    """

    dataset: grain.MapDataset
    source: sources.EpisodeSource
    num_episodes: int


def make_items(
    config: ml_collections.ConfigDict,
    split: str,
    stage: str,
    *,
    seed: int,
    num_epochs: int | None = None,
    source: sources.EpisodeSource | None = None,
) -> Items:
    """The examples of a stage, one by one; arguments and errors as `make_iterator`."""
    if stage not in config.train:
        raise ValueError(f"train.{stage} does not exist; choose one of {sorted(config.train.stages)}.")
    source = make_source(config, split) if source is None else source
    sampler = clips.ClipSampler(
        segment_length=config.hierarchy.segment_length,
        depth=config.hierarchy.depth,
        clip_length=config.train[stage].clip_length,
        level_weights=tuple(config.data.level_weights),
        scattered=stage in config_rules.IMAGE_STAGES,
    )
    tokenizer = text.tokenizer_of(config.text)
    lengths = np.array([source.num_frames(i) for i in range(len(source))], np.int64)
    episodes = clips.usable_episodes(sampler, lengths)
    _check_levels(sampler, lengths, stage)
    dataset = (
        grain.MapDataset.source(episodes)
        .seed(seed)
        .shuffle()
        .repeat(num_epochs)
        .random_map(reading.ReadClip(source, sampler, tokenizer, episodes))
    )
    return Items(dataset, source, len(episodes))


def make_iterator(
    config: ml_collections.ConfigDict,
    split: str,
    stage: str,
    *,
    seed: int,
    batch_size: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    num_epochs: int | None = None,
    source: sources.EpisodeSource | None = None,
    cached: store.Examples | None = None,
) -> ClipIterator:
    """Batches of clips for one training stage.

    Args:
      config: reads `data`, `text`, `hierarchy` and `train.<stage>`.
      split: 'train', 'valid' or 'test'.
      stage: a stage of `config.train`; its clip_length is l. The image stages take l frames from
        anywhere in an episode.
      seed: of shuffling and clip sampling, 0 <= seed < 2^32.
      batch_size: B of all processes together; default `train.<stage>.batch_size`.
      process_index: this process, of
      process_count: all that share the batch; it must divide B.
      num_epochs: passes over the episodes, one clip each; None repeats for ever. A last batch
        that would not be full is left out, so every process yields as many.
      source: takes the place of `make_source(config, split)`.
      cached: the first examples of this stage and seed, encoded before; they are repeated for ever,
        and no video is read.

    Returns:
      A ClipIterator yielding, with b = B / process_count,
      dict(frames uint8 [b, l, H, W, 3], tokens int32 [b, l, N], level int32 [b] (0 = global; 0 for images),
      episode int64 [b], start int64 [b] (first frame)); of cached examples without frames and with the fields of
      `training.denoiser_task.fields_of`.

    Raises:
      ValueError: naming the field that does not fit.
    """
    if stage not in config.train:
        raise ValueError(f"train.{stage} does not exist; choose one of {sorted(config.train.stages)}.")
    batch_size = config.train[stage].batch_size if batch_size is None else batch_size
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index is {process_index}; it must lie in 0..{process_count - 1}.")
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(f"train.{stage}.batch_size is {batch_size}; give a multiple of the {process_count} processes.")
    identity = {"split": split, "stage": stage, "seed": int(seed), "batch_size": int(batch_size)}
    if cached is not None:
        dataset, source = store.Epochs(cached, seed), None
        num_batches = sys.maxsize // batch_size
        identity |= {"cached_examples": len(cached)}
    else:
        items = make_items(config, split, stage, seed=seed, num_epochs=num_epochs, source=source)
        dataset, source, count = items.dataset, items.source, items.num_episodes
        num_batches = sys.maxsize // batch_size if num_epochs is None else count * num_epochs // batch_size
        if not num_batches:
            raise ValueError(
                f"{count} episodes in {num_epochs} epochs of split {split!r} do not fill one batch of "
                f"{batch_size}; lower batch_size or give more episodes."
            )
        identity |= {"num_episodes": count}
    rows = ProcessRows(dataset, batch_size // process_count, process_index, process_count, 0, num_batches)
    return ClipIterator(rows, read_plan(config), identity, reading.BadFiles(source, config.data.max_bad))


def read_plan(config: ml_collections.ConfigDict) -> ReadPlan:
    """How `config.data` wants elements read."""
    return ReadPlan(config.data.num_workers, config.data.num_threads, config.data.prefetch)


def read_range(
    config: ml_collections.ConfigDict, items: Items, batch_size: int, first: int, count: int, bad: reading.BadFiles
) -> Iterator[Batch]:
    """Batches of the items first .. first + count - 1, both multiples of `batch_size`, in order."""
    rows = ProcessRows(items.dataset, batch_size, 0, 1, first // batch_size, (first + count) // batch_size)
    batches = read_plan(config).start(rows)
    try:
        for batch in batches:
            bad.note(batch.pop("bad"))
            yield batch
    finally:
        batches.close()


def _toons(config: ml_collections.ConfigDict, split: str) -> sources.EpisodeSource:
    data = config.data
    return toons_source.ToonsSource(
        split,
        frame_size=data.frame_size,
        num_episodes=data.num_episodes if split == "train" else data.num_eval_episodes,
        episode_frames=data.episode_frames,
    )


def _videos(config: ml_collections.ConfigDict, split: str) -> sources.EpisodeSource:
    data = config.data
    least = config.hierarchy.segment_length
    return videos.VideoSource(
        data.path,
        split=split,
        frame_size=data.frame_size,
        min_frames=least,
        fps=data.fps,
        captions=data.captions,
        caption_fill=data.caption_fill,
        eval_fraction=data.eval_fraction,
    )


def _tfds(config: ml_collections.ConfigDict, split: str) -> sources.EpisodeSource:
    from nuwaxl_jax.data import tfds_source  # slow to import, and only this source needs it

    data = config.data
    return tfds_source.TFDSSource(
        data.tfds_name,
        split=split,
        frame_size=data.frame_size,
        video=data.tfds_video,
        caption=data.tfds_caption,
        fps=data.fps or tfds_source.FPS,
        data_dir=data.path,
        min_frames=config.hierarchy.segment_length,
        eval_fraction=data.eval_fraction,
    )


SOURCES = {"tfds": _tfds, "toons": _toons, "folder": _videos, "prepared": prepared_source.open_source}
