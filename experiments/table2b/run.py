"""Table 2(b): where the visual condition enters the denoiser.

    python experiments/table2b/run.py [--only=...] [--seeds=0,1,2] [--dry_run] [--table]   (flags: study.py)

Our presets fill the finest level's condition with, and predict from, the line between the given frames, which tells the
network of them whatever is injected. The first four arms leave it out, as the paper has none.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import study  # noqa: E402

PAPER = ("unet.condition_fill=('zero', 'zero', 'zero')", "diffusion.line_std=(1.0, 1.0, 1.0)")
ARMS = (
    study.Arm("down_up", PAPER),  # the paper's: multi-scale, symmetric
    study.Arm("up", (*PAPER, "unet.injection=up")),
    study.Arm("top_up", (*PAPER, "unet.injection=top_up")),
    study.Arm("none", (*PAPER, "unet.injection=none")),  # ours: given frames are not told at all
    study.Arm("down_up, line"),
    study.Arm("up, line", ("unet.injection=up",)),
    study.Arm("top_up, line", ("unet.injection=top_up",)),
    study.Arm("none, line", ("unet.injection=none",)),
)
STUDY = study.Study(
    folder=pathlib.Path(__file__).parent,
    arms=ARMS,
    frames=(226,),
    shown=("denoising_1", "denoising_2", "exact", "identity", "border_ratio", "frechet_stills", "b_fvd_16"),
)

if __name__ == "__main__":
    study.main(STUDY, __doc__)
