"""Table 2(c): the depth of the tree.

    python experiments/table2c/run.py [--only=...] [--seeds=0,1,2] [--dry_run] [--table]   (flags: study.py)

A video longer than a tree is told by trees side by side (the paper does not say how): 16 frames each at depth 1, 226 at
depth 2, 3376 at depth 3. Every depth trains on the strides it has, for the same number of steps.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import study  # noqa: E402


def of_depth(depth: int) -> tuple[str, ...]:
    """The config with the first and (at depth 2) the last of the preset's three levels."""
    of = lambda *values: repr(values[:depth])
    return (
        f"hierarchy.depth={depth}",
        f"data.level_weights={of(1.0, 3.0)}",
        f"unet.condition_fill={of('zero', 'linear')}",
        f"diffusion.line_std={of(1.0, 0.85)}",
        f"sampler.steps={of(16, 4)}",
        f"sampler.guidance={of(2.0, 1.0)}",
        f"sampler.temperature={of(1.0, 0.0)}",
    )


ARMS = (
    study.Arm("depth 3"),
    study.Arm("depth 2", of_depth(2), way="side_by_side"),
    study.Arm("depth 1", of_depth(1), way="side_by_side"),
    # Deeper trees sample stride 1 without noise.
    study.Arm("depth 1, no noise", of_depth(1), ("sampler.temperature=(0.0,)",), way="side_by_side", like="depth 1"),
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
