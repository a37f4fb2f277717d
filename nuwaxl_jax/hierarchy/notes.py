"""What the weights were not trained for, of a video that is asked of them: a line each, said before it is made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import ml_collections

from nuwaxl_jax.data.toons import world
from nuwaxl_jax.hierarchy import plan as plan_lib


def of_video(
    config: ml_collections.ConfigDict, plans: Sequence[plan_lib.LevelPlan], prompts: Sequence[str]
) -> list[str]:
    """Lines on prompts, and on given frames, such as training never showed; none where it did.

    Args:
      config: of the weights.
      plans: of the video, as it will be made; nothing here changes them.
      prompts: of the story.
    """
    foreign = world.foreign_prompts(prompts) if config.data.source == "toons" else ""
    return [*([foreign] if foreign else []), *_unseen(config, plans)]


def _unseen(config: ml_collections.ConfigDict, plans: Sequence[plan_lib.LevelPlan]) -> Iterator[str]:
    """Of local levels, whose training gives both borders, and other frames with these probabilities alone."""
    tree = config.hierarchy
    for plan in (plan for plan in plans if plan.network_level > 0):
        nothing = ~plan.given.any(axis=1)  # [S]
        if nothing.any() and config.diffusion.unconditional_prob == 0:
            least = plan_lib.tree_frames(tree.segment_length, tree.depth - 1) + 1  # of a video that level 0 starts
            mend = f"ask for {least} frames or more, or " if tree.strategy == "diffusion_over_diffusion" else ""
            yield _line("unconditional_prob", plan, "nothing", mend)
        if (plan.given[:, 0] & ~plan.given[:, -1]).any() and config.diffusion.first_only_prob == 0:
            yield _line("first_only_prob", plan, "their first frames alone")
            continue
        given, most = int((plan.given.sum(axis=1) * ~plan.given[:, -1]).max()), config.diffusion.first_frames
        if given > most:
            yield (
                f"config.hierarchy.overlap is {given}: level {plan.network_level} of these weights was given at most "
                f"{most} first frames in training; give that many, or train with config.diffusion.first_frames={given}"
            )


def _line(field: str, plan: plan_lib.LevelPlan, what: str, mend: str = "") -> str:
    return (
        f"config.diffusion.{field} is 0: level {plan.network_level} of these weights was never trained on segments "
        f"that are given {what}, and this video has such ones; {mend}train with it above 0"
    )
