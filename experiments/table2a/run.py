"""Table 2(a): what the T-KLVAE's temporal layers are worth, and how they should start.

    python experiments/table2a/run.py [--only=...] [--seeds=0,1,2] [--dry_run] [--table]   (flags: study.py)

All arms start from the same image KL-VAE (trained with that seed) and train on the same clips for the same steps, but
for the last two.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import study  # noqa: E402

_LONG = ("train.vae.num_steps=400",)  # of the preset's 100
ARMS = (
    study.Arm("identity", way="vae_ceiling"),  # the paper's
    study.Arm("random", ("vae.temporal_init=random",), way="vae_ceiling"),
    study.Arm("none", ("vae.temporal=none",), way="vae_ceiling"),  # the image KL-VAE
    study.Arm("identity, four times as long", _LONG, way="vae_ceiling"),
    study.Arm("none, four times as long", ("vae.temporal=none", *_LONG), way="vae_ceiling"),
)
STUDY = study.Study(
    folder=pathlib.Path(__file__).parent,
    arms=ARMS,
    frames=(226,),
    shown=("psnr", "ssim", "frechet_stills", "b_fvd_16", "fvd_spread_16", "border_ratio"),
    stages=("vae",),
    start="image_vae",
)

if __name__ == "__main__":
    study.main(STUDY, __doc__)
