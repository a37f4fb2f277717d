"""Table 1: does quality hold as videos grow? The tree against what it is compared with, by the same code and budget.

    python experiments/table1/run.py [--only=...] [--seeds=0,1,2] [--dry_run] [--table]   (flags: study.py)

Every arm trains for the same steps, on the frames and with the given frames that it is sampled with.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import study  # noqa: E402

# Stride 1 alone; up to 8 first frames given, or (for the first window) none.
WINDOW = ("data.level_weights=(0.0, 0.0, 1.0)", "diffusion.first_only_prob=0.9", "diffusion.unconditional_prob=0.1")
EIGHT = ("diffusion.first_frames=8",)
ARMS = (
    study.Arm("tree"),
    study.Arm("window, 1 frame given", WINDOW, way="autoregressive"),
    study.Arm("window, 8 frames given", (*WINDOW, *EIGHT), ("hierarchy.overlap=8",), way="autoregressive"),
    # Keyframes by a window at stride 15, gaps at stride 1; the network sees both kinds of given frames.
    study.Arm(
        "hierarchy-2",
        ("data.level_weights=(0.0, 1.0, 1.0)", "diffusion.first_only_prob=0.5", *EIGHT),
        ("hierarchy.overlap=8",),
        way="hierarchy_2",
    ),
    study.Arm(
        "independent clips",
        ("data.level_weights=(0.0, 0.0, 1.0)", "diffusion.first_only_prob=0.0", "diffusion.unconditional_prob=1.0"),
        way="independent",
    ),
    study.Arm("window, the tree's weights", like="tree", way="autoregressive"),
    # The preset samples stride 1 without noise where a tree does it, and a window with: each as the other does.
    study.Arm("tree, full noise", like="tree", sample=("sampler.temperature=(1.0, 1.0, 1.0)",)),
    # Windows have no guidance at stride 1, the tree has some at its upper levels.
    study.Arm("tree, no guidance", like="tree", sample=("sampler.guidance=(1.0, 1.0, 1.0)",)),
    study.Arm(
        "window, 1 frame given, no noise",
        WINDOW,
        ("sampler.window_temperature=0.0",),
        way="autoregressive",
        like="window, 1 frame given",
    ),
)
STUDY = study.Study(
    folder=pathlib.Path(__file__).parent,
    arms=ARMS,
    frames=(16, 256, 1024, 3376),
    shown=("frechet_stills", "b_fvd_16", "fvd_spread_16", "exact", "identity", "border_ratio", "seconds", "calls"),
    stories=4,
)

if __name__ == "__main__":
    study.main(STUDY, __doc__)
