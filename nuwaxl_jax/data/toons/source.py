"""The toons as a source of episodes (see `nuwaxl_jax.data.sources` for the protocol)."""

import functools

import numpy as np

from nuwaxl_jax.data.toons import render
from nuwaxl_jax.data.toons import script as script_lib
from nuwaxl_jax.data.toons import world


class ToonsSource:
    """Endless cartoon episodes, drawn on demand.

    Episode i of a split is a pure function of (seed, split, i), and its frame j of that and j. The splits draw from
    separate streams, so they never share an episode. Nothing is stored but a cache of scripts that all sources of a
    process share; instances are cheap, can be copied to workers, and may be used by many threads.
    """

    def __init__(
        self,
        split: str,
        *,
        seed: int = 0,
        frame_size: int = 64,
        num_episodes: int = 100_000,
        episode_frames: int = 4096,
    ):
        """Creates a source.

        Args:
          split: 'train', 'valid' or 'test'.
          seed: selects another world of episodes.
          frame_size: height and width of a frame, pixels.
          num_episodes: number of episodes.
          episode_frames: frames of an episode; a longer one begins with the frames of a shorter one.

        Raises:
          ValueError: a field is out of range.
        """
        if split not in script_lib.SPLITS:
            raise ValueError(f"split {split!r} is unknown; use one of {script_lib.SPLITS}")
        for name, value, least in (
            ("frame_size", frame_size, 16),
            ("num_episodes", num_episodes, 1),
            ("episode_frames", episode_frames, 1),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.split = split
        self.seed = int(seed)
        self.frame_size = int(frame_size)
        self.num_episodes = int(num_episodes)
        self.episode_frames = int(episode_frames)

    def __len__(self) -> int:
        return self.num_episodes

    def num_frames(self, i: int) -> int:
        self._check_episode(i)
        return self.episode_frames

    def fps(self, i: int) -> float:
        """Frames a second at which the motion looks natural."""
        self._check_episode(i)
        return 24.0

    def frames(self, i: int, index: np.ndarray) -> np.ndarray:
        """Frames `index` (int [n], any order) of episode i: uint8 [n, frame_size, frame_size, 3]."""
        script, index = self._select(i, index)
        return render.render(script, index, self.frame_size)

    def captions(self, i: int, index: np.ndarray) -> list[str]:
        """One caption for each frame of `index` (int [n])."""
        script, index = self._select(i, index)
        scenes, actions = script.scene[index].tolist(), script.action[index].tolist()
        return [_caption(script.characters, scene, tuple(codes)) for scene, codes in zip(scenes, actions)]

    def truth(self, i: int, index: np.ndarray) -> list[world.FrameTruth]:
        """What frames `index` (int [n]) of episode i show, exactly."""
        script, index = self._select(i, index)
        captions = self.captions(i, index)
        truths = []
        for frame, text in zip(index.tolist(), captions):
            characters = []
            for column, identity in enumerate(script.characters):
                code = int(script.action[frame, column])
                if code == script_lib.ABSENT:
                    continue
                x, y = float(script.x[frame, column]), float(script.y[frame, column])
                half = identity.half_width
                inside = min(x + half, world.STAGE) - max(x - half, 0.0)
                characters.append(
                    world.CharacterTruth(
                        shape=identity.shape,
                        colour=identity.colour,
                        size=identity.size,
                        x=x,
                        y=y,
                        action=world.ACTIONS[code],
                        visible=float(np.clip(inside / (2 * half) + 1e-6, 0.0, 1.0)),
                    )
                )
            truths.append(
                world.FrameTruth(
                    scene=world.SCENES[script.scene[frame]],
                    characters=tuple(characters),
                    caption=text,
                    shot=int(script.shot[frame]),
                )
            )
        return truths

    def _check_episode(self, i: int) -> None:
        if not 0 <= i < self.num_episodes:
            raise IndexError(f"episode {i} is out of range; {self.split!r} has {self.num_episodes}")

    def _select(self, i: int, index) -> tuple[script_lib.Script, np.ndarray]:
        self._check_episode(i)
        index = np.atleast_1d(np.asarray(index))
        if index.ndim != 1 or not np.issubdtype(index.dtype, np.integer):
            raise ValueError(f"index must be integers of shape [n], got {index.dtype} {index.shape}")
        if index.size and (index.min() < 0 or index.max() >= self.episode_frames):
            raise IndexError(
                f"frames {index.min()}..{index.max()} are out of range; episodes have {self.episode_frames} frames"
            )
        return script_lib.make_script(self.seed, self.split, int(i), self.episode_frames), index


@functools.lru_cache(maxsize=4096)
def _caption(characters: tuple[world.Identity, ...], scene: int, codes: tuple[int, ...]) -> str:
    return world.caption(
        world.SCENES[scene],
        [
            (who.size, who.colour, who.shape, world.ACTIONS[code])
            for who, code in zip(characters, codes)
            if code != script_lib.ABSENT
        ],
    )
