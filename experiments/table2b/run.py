"""Table 2(b): where the visual condition enters the denoiser.

python experiments/table2b/run.py [--only=...] [--seeds=0,1,2] [--dry_run] [--table]   (flags: study.py)
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import study  # noqa: E402

ARMS = (
    study.Arm("down_up"),  # the paper's: multi-scale, symmetric
    study.Arm("up", ("unet.injection=up",)),
    study.Arm("top_up", ("unet.injection=top_up",)),
    study.Arm("none", ("unet.injection=none",)),  # ours: given frames are not told at all
)
STUDY = study.Study(
    folder=pathlib.Path(__file__).parent,
    arms=ARMS,
    frames=(226,),
    shown=("denoising_1", "denoising_2", "exact", "identity", "border_ratio", "frechet_stills", "b_fvd_16"),
)

if __name__ == "__main__":
    study.main(STUDY, __doc__)
