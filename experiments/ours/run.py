"""Choices that the paper leaves open, or makes and we can make otherwise: one change each.

python experiments/ours/run.py [--only=...] [--seeds=0,1,2] [--dry_run] [--table]   (flags: study.py)
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import study  # noqa: E402

ARMS = (
    study.Arm("as it is"),
    # One network a level, each with a third of the steps: the same number of clips in all.
    study.Arm("weights per level", ("mtd.weights=per_level", "train.denoiser.num_steps=167")),
    study.Arm("pixel hand-over", ("hierarchy.handover=pixel",)),
    study.Arm("condition noise 0.1", ("diffusion.cond_noise=0.1",)),
    study.Arm("condition noise 0.3", ("diffusion.cond_noise=0.3",)),
    study.Arm("no loss on given frames", ("diffusion.loss_on_given=False",)),
    study.Arm("timesteps shifted by 3", ("diffusion.time_shift=3.0",)),
    study.Arm("one prompt a segment", ("text.per_frame=False",)),
    study.Arm("no guidance", like="as it is", sample=("sampler.guidance=(1.0, 1.0, 1.0)",)),
    study.Arm("guidance 4, 3, 1", like="as it is", sample=("sampler.guidance=(4.0, 3.0, 1.0)",)),
    study.Arm("half the steps", like="as it is", sample=("sampler.steps=(8, 6, 2)",)),
    study.Arm("twice the steps", like="as it is", sample=("sampler.steps=(32, 24, 8)",)),
)
STUDY = study.Study(
    folder=pathlib.Path(__file__).parent,
    arms=ARMS,
    frames=(226,),
    shown=(
        *("denoising_0", "denoising_1", "denoising_2", "exact", "scene", "identity", "step"),
        *("border_ratio", "frechet_stills", "b_fvd_16"),
    ),
)

if __name__ == "__main__":
    study.main(STUDY, __doc__)
