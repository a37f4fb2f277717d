"""README's pictures from a generated video: its storyboard, and a strip of consecutive frames; or frames of choice.

python experiments/toons_small/pictures.py out/two_friends.mp4 [--first 240] [--into out/pictures]
python experiments/toons_small/pictures.py out/two_friends.mp4 --rows 120:360:15 1560:1800:15 --out good.png

Without --into they lie beside this file, in place of the shipped model's.
"""

import argparse
import json
import pathlib
import shutil
import sys

import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # the code here, and no copy that is installed
from nuwaxl_jax import video_io

HERE = pathlib.Path(__file__).parent


def strip(frames: np.ndarray, columns: int, scale: int = 2) -> Image.Image:
    """Frames `[n, H, W, 3]` in rows of `columns`, left to right, top to bottom."""
    rows = [np.concatenate(list(frames[i : i + columns]), axis=1) for i in range(0, len(frames), columns)]
    picture = Image.fromarray(np.concatenate(rows, axis=0))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def draw(video: pathlib.Path, first: int = 240, into: pathlib.Path = HERE) -> None:
    """Strip from frame `first` on, storyboard and metadata of a video that --mode=sample made."""
    into.mkdir(parents=True, exist_ok=True)
    with video_io.VideoReader(video) as reader:
        frames = reader.read(np.arange(first, first + 32))
    strip(frames, 16, 1).save(into / "strip.png")
    shutil.copy(video.with_suffix(".png"), into / "storyboard.png")
    meta = json.loads(video.with_suffix(".json").read_text())
    (into / "main_job.json").write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n")


def rows_of(video: pathlib.Path, rows: list[range]) -> Image.Image:
    """A row of frames each, in the video's own pixels."""
    with video_io.VideoReader(video) as reader:
        return strip(np.concatenate([reader.read(np.array(row)) for row in rows]), len(rows[0]), 1)


def frame_range(text: str) -> range:
    """FIRST:BEFORE:STEP, as in a slice."""
    return range(*map(int, text.split(":")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=pathlib.Path)
    parser.add_argument("--first", type=int, default=240, help="first frame of the strip")
    parser.add_argument("--rows", type=frame_range, nargs="+", help="FIRST:BEFORE:STEP, of equal numbers of frames")
    parser.add_argument("--out", default="rows.png", help="the name of their picture")
    parser.add_argument("--into", type=pathlib.Path, default=HERE, help="folder of the pictures")
    arguments = parser.parse_args()
    if arguments.rows and len({len(row) for row in arguments.rows}) > 1:
        parser.error("--rows: their numbers of frames differ; give as many in each")
    if arguments.rows:
        arguments.into.mkdir(parents=True, exist_ok=True)
        rows_of(arguments.video, arguments.rows).save(arguments.into / arguments.out)
    else:
        draw(arguments.video, arguments.first, arguments.into)


if __name__ == "__main__":
    main()
