"""FlintstonesHD as a TensorFlow data set, made from files that the user has; needs no TensorFlow.

    import nuwaxl_jax.data.flintstones_hd
    builder = tfds.builder("flintstones_hd/128", data_dir=DIR)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=EPISODES))
    frames = builder.as_data_source(split="train")

NUWA-XL's section 4 describes the data set, 166 episodes with captions of every frame, but neither videos nor captions
were released, and the episodes are copyrighted. One record is a frame, in order, episode by episode; the splits
are disjoint in episodes. TFDS's own folder of unfinished work goes with a process that is killed, so records
grow in one beside it, `.<version>.partial`, which the next call goes on with. `PreparedSource` reads DIR too.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_builder

from nuwaxl_jax.data.prepared import finish
from nuwaxl_jax.data.prepared import format as format_lib
from nuwaxl_jax.data.prepared import plan as plan_lib
from nuwaxl_jax.data.prepared import run
from nuwaxl_jax.data.prepared import staging as staging_lib

_TFDS_WRITES = ("dataset_info.json", "features.json", "metadata.json")


@dataclasses.dataclass(eq=False)
class Config(tfds.core.BuilderConfig):
    """One way of preparing the episodes; the fields are `prepared.format.Settings`', where they are explained.

    With another name, a user's own: Config(name="64_8fps", frame_size=64, fps=8.0).
    """

    frame_size: int = 128
    fps: float = 0.0
    image: str = "png"
    quality: int = 95
    eval_fraction: float = 0.1
    part_frames: int = 0  # most frames of a record file; 0: by their number

    @property
    def settings(self) -> format_lib.Settings:
        return format_lib.Settings(self.frame_size, self.fps, self.image, self.quality, self.eval_fraction)


def _configs() -> list[Config]:
    out = []
    for size in (128, 256):
        out.append(Config(name=f"{size}", frame_size=size, description=f"{size}x{size} pixels, lossless (PNG)"))
        said = f"{size}x{size} pixels, JPEG of quality 95: a third of the size"
        out.append(Config(name=f"{size}_jpeg", frame_size=size, image="jpeg", description=said))
    return out


class Builder(dataset_builder.FileReaderBuilder):
    """See the module's docstring. Kept as ArrayRecord, whatever TFDS's default."""

    VERSION = tfds.core.Version(finish.VERSION)
    RELEASE_NOTES = {finish.VERSION: "One record a frame."}
    BUILDER_CONFIGS = _configs()
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    The Flintstones are copyrighted: nothing is downloaded. Put files that you may use into manual_dir, as one of
      HD episodes      episode files or folders of numbered frames, named by season and episode (s01e01.mp4), with
                       CRAFT's flintstones_annotations_v1-0.json, whose captions go by frame number
      CRAFT            flintstones_annotations_v1-0.json, train-val-test_split.json, video_frames/<globalID>.npy
      FlintstonesSV    the same two files, video_frames_sampled/<globalID>.npy
      videos           any folder of videos with same-name .txt or .srt captions or a captions.jsonl, or a manifest
    nuwaxl_jax/data/README.md describes each. See what is found with
      python -m nuwaxl_jax.main --mode=data --check --config.data.path=MANUAL_DIR
    """

    def __init__(self, *, file_format: Any = None, **kwargs: Any):
        given = file_format or "array_record"
        if tfds.core.FileFormat.from_value(given) != tfds.core.FileFormat.ARRAY_RECORD:
            raise ValueError(f"file_format is {given!r}; flintstones_hd is kept as 'array_record' alone")
        super().__init__(file_format="array_record", **kwargs)
        self._plan: plan_lib.Plan | None = None

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Frames of The Flintstones with captions, from the user's own files (NUWA-XL, section 4).",
            features=tfds.features.FeaturesDict(format_lib.features(self.builder_config.settings)),
            homepage="https://arxiv.org/abs/2303.12346",
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    @property
    def staging(self) -> staging_lib.Staging:
        """Where the records grow; outside what TFDS removes."""
        its = pathlib.Path(self.data_dir_root) / self.name / self.builder_config.name
        return staging_lib.Staging(its / f".{self.version}.partial")

    def download_and_prepare(
        self,
        *,
        download_dir: Any = None,
        download_config: tfds.download.DownloadConfig | None = None,
        **options: Any,
    ) -> None:
        """Prepares the files in manual_dir; goes on where a killed call stopped, and divides the work with others.

        Args:
          download_dir: its `manual` is the default of manual_dir.
          download_config: its manual_dir is where the files are; limits on examples and statistics are not used.
          **options: as TFDS has them.

        Raises:
          AssertionError: manual_dir is empty or not there; tells what to put in.
          ValueError: no video can be read, or what was begun is of other files; a line with the mend.
        """
        download_config = download_config or tfds.download.DownloadConfig()
        final = pathlib.Path(self.data_dir)
        asked = options.get("file_format") or "array_record"
        if tfds.core.FileFormat.from_value(asked) != tfds.core.FileFormat.ARRAY_RECORD:
            raise ValueError(f"file_format is {asked!r}; flintstones_hd is kept as 'array_record' alone")
        if final.exists() and not download_config.download_mode.overwrite_dataset:
            shutil.rmtree(self.staging.folder, ignore_errors=True)  # left by a call killed at its very end
            return
        manager = self._make_download_manager(download_dir=download_dir, download_config=download_config)
        config, staging = self.builder_config, self.staging
        self._plan = plan_lib.make(manager.manual_dir, config.settings, part_frames=config.part_frames)
        is_over = lambda: final.exists() and not download_config.download_mode.overwrite_dataset
        run.work(self._plan, staging, is_over)
        try:
            with staging.finishing():
                if not is_over():
                    for stale in final.parent.glob(f"incomplete.*_{final.name}"):  # TFDS's, of a killed call
                        shutil.rmtree(stale, ignore_errors=True)
                    super().download_and_prepare(download_dir=download_dir, download_config=download_config, **options)
        except FileNotFoundError:
            if not is_over():  # else another call has finished and removed the folder
                raise
        shutil.rmtree(staging.folder, ignore_errors=True)
        self.info.read_from_directory(self.data_dir)

    def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
        """Called by TFDS, with `self.data_dir` a folder that takes the set's name afterwards."""
        del dl_manager, download_config
        identity = finish.Identity(self.name, self.builder_config.name, str(self.version))
        made = finish.compose(self._plan, self.staging, identity)
        for file in sorted(made.iterdir()):
            if file.name not in _TFDS_WRITES:
                _link(file, pathlib.Path(self.data_dir) / file.name)
        metadata = json.loads((made / format_lib.METADATA).read_text(encoding="utf-8"))
        self.info.metadata.update(metadata)
        self.info.set_splits(tfds.core.SplitDict(finish.split_infos(metadata)))
        report = json.loads((made / format_lib.REPORT).read_text(encoding="utf-8"))
        print("\n".join(run.lines(report)))


def _link(source: pathlib.Path, target: pathlib.Path) -> None:
    """A second name for a file, so that the first is still there should this process be killed; else a copy."""
    with staging_lib.writing(target):
        try:
            os.link(source, target)
        except OSError:  # a file system without
            shutil.copyfile(source, target)
            staging_lib.sync(target)
