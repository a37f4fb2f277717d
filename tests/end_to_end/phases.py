"""The command, told to stop in one of its phases: `python phases.py PHASE FLAG ...`; run by test_preemption.py.

The process sends itself, and its children, SIGTERM when it first enters the phase: of several the second, but for
decoding, which is the first one's work.
"""

import importlib
import os
import signal
import sys
import time

from absl import flags

from nuwaxl_jax import main

# phase -> (module, name in it) of what is called first in it
PHASES = {
    "compilation": ("training.loop", "_compile"),
    "step": ("training.progress", "Log.add"),
    "saving": ("training.checkpoint", "Checkpointer.save"),
    "caching": ("data.cache.elements", "kept"),
    "sampling": ("hierarchy.generate", "_store"),
    "decoding": ("hierarchy.decode", "decode_frames"),
    "evaluation": ("evaluation.story_score", "story_score"),
    "reading": ("data.intake.places", "read"),
}
_NOTICE = 3.0  # seconds in which jax's service tells of a signal


def tell_in(phase: str) -> None:
    """Patches the phase's function."""
    module, name = PHASES[phase]
    *owners, name = name.split(".")
    owner = importlib.import_module(f"nuwaxl_jax.{module}")
    for each in owners:
        owner = getattr(owner, each)
    inner, told = getattr(owner, name), []

    def patched(*args, **kwargs):
        several = flags.FLAGS.processes > 1
        if not told and flags.FLAGS.process in (-1, 0 if phase == "decoding" else 1):
            told.append(True)
            os.killpg(0, signal.SIGTERM)
            time.sleep(_NOTICE if several else 0.0)
        return inner(*args, **kwargs)

    setattr(owner, name, patched)


if __name__ == "__main__":
    if sys.argv[1] != "none":
        tell_in(sys.argv[1])
    main.run([sys.argv[0], *sys.argv[2:]])
