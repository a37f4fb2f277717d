"""The command line of the studies; study.py says what each of it is for."""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
KEPT = 800  # clips of a study's own rows


def arguments_of(study: Any, description: str) -> argparse.Namespace:
    """The command line of a study."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help=f"with ; between, of {'; '.join(arm.name for arm in study.arms)}")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--frames", default=",".join(map(str, study.frames)))
    parser.add_argument("--stories", type=int, default=study.stories)
    if study.stages:
        parser.add_argument("--config", default="", help=f"another than configs/toons.py:{study.preset}")
    else:
        parser.add_argument("--weights", default="shipped", help="shipped, or a file of --mode=export")
        parser.set_defaults(config="")
    parser.add_argument("--set", action="append", default=[], help="FIELD=VALUE of every arm's config")
    parser.add_argument("--jobs", type=int, default=1, help="arms at a time")
    parser.add_argument("--kept", type=int, default=KEPT, help="clips that are encoded once; 0: trained from frames")
    parser.add_argument("--work", default=str(ROOT / "runs" / "studies"))
    parser.add_argument("--inception", default="", help="FID's weights, for avg_fid; as of --mode=eval")
    parser.add_argument("--clip", default="", help="CLIP's folder, for clip_similarity; as of --mode=eval")
    parser.add_argument("--anew", action="store_true", help="all again, in <work>/anew; what is there is gone on with")
    parser.add_argument("--dry_run", action="store_true", help="the tiny preset, two steps, nothing written here")
    parser.add_argument("--table", action="store_true", help="print the table of what is finished")
    return parser.parse_args()
