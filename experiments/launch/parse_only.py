"""Parses a run's arguments as `nuwaxl_jax.main` would on a worker, and runs nothing: mistakes show before the rent.

    python parse_only.py --mode=train --config=configs/nuwaxl.py:paper128 ...

Exit status 2 and one line, as of the run itself. Files are not looked for: they lie on the workers.
"""

import sys

_ARGV, sys.argv = sys.argv, sys.argv[:1]  # config_flags reads overrides when the flag is defined, and raises there

from nuwaxl_jax import config as config_lib
from nuwaxl_jax import main

sys.argv = _ARGV


def _validate(remaining: list[str]) -> None:
    if len(remaining) > 1:
        raise main.UsageError(f"unknown argument {remaining[1]!r}; options start with --")
    training = main.FLAGS.mode == "train"
    (config_lib.validate_training if training else config_lib.validate)(main.FLAGS.config)


if __name__ == "__main__":
    main.main = _validate
    main.run(sys.argv)
