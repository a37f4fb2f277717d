"""What the sampler's choices are worth in a model that can draw: the shipped weights, told in other ways.

    python experiments/shipped/run.py [--only=...] [--seeds=0,1,2] [--weights=FILE] [--dry_run] [--table]

Nothing is trained; a seed is that of the noise. `--weights` takes any that `--mode=export` has written, and their data.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import study  # noqa: E402

ARMS = (
    study.Arm("tree"),
    study.Arm("window", like="tree", way="autoregressive"),
    study.Arm("tree, full noise", like="tree", sample=("sampler.temperature=(1.0, 1.0, 1.0)",)),
    study.Arm("window, no noise", like="tree", sample=("sampler.window_temperature=0.0",), way="autoregressive"),
    study.Arm("independent clips", like="tree", way="independent"),
    study.Arm("no guidance", like="tree", sample=("sampler.guidance=(1.0, 1.0, 1.0)",)),
    study.Arm("guidance 4, 3, 1", like="tree", sample=("sampler.guidance=(4.0, 3.0, 1.0)",)),
    study.Arm("half the steps", like="tree", sample=("sampler.steps=(16, 12, 2)",)),
    study.Arm("twice the steps", like="tree", sample=("sampler.steps=(64, 48, 8)",)),
    study.Arm("one prompt a segment", like="tree", sample=("text.per_frame=False",)),
)
STUDY = study.Study(
    folder=pathlib.Path(__file__).parent,
    arms=ARMS,
    frames=(1024,),
    shown=("exact", "identity", "step", "direction", "action", "border_ratio", "frechet_stills", "b_fvd_16", "calls"),
    stages=(),
    start="",
    preset="small",
    stories=4,
)

if __name__ == "__main__":
    study.main(STUDY, __doc__)
