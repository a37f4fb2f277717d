"""Table 2(d): the length of a segment, 8, 16 or 32 frames (the last ran out of memory in the paper).

    python experiments/table2d/run.py [--only=...] [--seeds=0,1,2] [--dry_run] [--table]   (flags: study.py)

As many frames a step in every arm (8, 4 and 2 clips), and as deep a tree as 1024 frames need: 4, 3 and 3 levels.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import study  # noqa: E402


def of_length(length: int, clips: int) -> tuple[str, ...]:
    """Segments of `length` frames, `clips` of them a step."""
    return (
        f"hierarchy.segment_length={length}",
        f"train.denoiser.clip_length={length}",
        f"train.denoiser.batch_size={clips}",
        "data.episode_frames=32768",
    )


FOUR_LEVELS = (
    "hierarchy.depth=4",
    "data.level_weights=(1.0, 2.0, 3.0, 3.0)",
    "unet.condition_fill=('zero', 'zero', 'zero', 'linear')",
    "diffusion.line_std=(1.0, 1.0, 1.0, 0.85)",
    "sampler.steps=(16, 12, 12, 4)",
    "sampler.guidance=(2.0, 1.5, 1.5, 1.0)",
    "sampler.temperature=(1.0, 0.7, 0.7, 0.0)",
)
ARMS = (
    study.Arm("16 frames"),
    study.Arm("8 frames", (*of_length(8, 8), *FOUR_LEVELS)),
    study.Arm("32 frames", of_length(32, 2)),
)
STUDY = study.Study(
    folder=pathlib.Path(__file__).parent,
    arms=ARMS,
    frames=(16, 256, 1024),
    shown=("exact", "scene", "identity", "border_ratio", "frechet_stills", "b_fvd_16", "fvd_spread_16"),
    stories=4,
)

if __name__ == "__main__":
    study.main(STUDY, __doc__)
