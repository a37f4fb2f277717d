"""Who captions frames: the annotations that are there, an external program, or a model of `transformers`.

Another is a class with `source`, `model`, `revision` and `__call__` as in `Captioner`.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import shlex
import subprocess
import tempfile
from typing import NamedTuple, Protocol, Sequence

import numpy as np
from PIL import Image

from nuwaxl_jax.data.intake import survey as survey_lib

KINDS = ("from_annotations", "command", "transformers")

_PROGRAM_SECONDS = 3600
_MODELS = {"blip": "BlipForConditionalGeneration", "git": "GitForCausalLM"}
_NEW_TOKENS = 40


class CaptioningError(ValueError):
    """One line: who could not caption what, and the mend."""


class Made(NamedTuple):
    """A caption, and how sure its maker is of it (None: it does not say)."""

    text: str
    score: float | None = None


class Captioner(Protocol):
    """Captions frames of one video.

    Attributes:
      source: 'human' or 'machine'.
      model, revision: who, and which version of it; captions of another are not mixed with these.
    """

    source: str
    model: str
    revision: str

    def __call__(self, frames: np.ndarray, video: survey_lib.Video, numbers: Sequence[int]) -> list[Made]:
        """Captions of `frames`, uint8 [n, H, W, 3], which are numbers `numbers` of `video`: n of them."""


class FromAnnotations:
    """What the data set says of these frames already: intervals become frames."""

    source, model, revision = "human", "annotations", ""

    def __call__(self, frames: np.ndarray, video: survey_lib.Video, numbers: Sequence[int]) -> list[Made]:
        index = np.asarray(numbers)
        return [Made(text) for text in survey_lib.texts(video, index, video.index.times[index])]


class Command:
    """An external program: it is given the paths of PNG files, a line each, and prints a caption a line."""

    source = "machine"

    def __init__(self, program: str):
        """program: as in a shell, without its expansions: 'python my_captioner.py --beam=3'.

        Raises:
          CaptioningError: none is given.
        """
        self.model, self.revision = program, ""
        self._arguments = shlex.split(program)
        if not self._arguments:
            raise CaptioningError("--program is empty; give the command that captions images")

    def __call__(self, frames: np.ndarray, video: survey_lib.Video, numbers: Sequence[int]) -> list[Made]:
        with tempfile.TemporaryDirectory() as folder:
            paths = [str(pathlib.Path(folder) / f"{number:08}.png") for number in numbers]
            for path, frame in zip(paths, frames):
                Image.fromarray(frame).save(path)
            try:
                done = subprocess.run(
                    self._arguments,
                    input="\n".join(paths) + "\n",
                    capture_output=True,
                    text=True,
                    timeout=_PROGRAM_SECONDS,
                )
            except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError) as error:
                raise CaptioningError(f"--program: {self.model!r} cannot be used ({error})") from error
        name = video.entry.name
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
            raise CaptioningError(f"--program: {self.model!r} ended with {done.returncode} at {name}: {last}")
        lines = done.stdout.removesuffix("\n").split("\n")  # an empty line is an empty caption, the last one too
        while len(lines) > len(numbers) and not lines[-1]:
            lines.pop()
        if len(lines) != len(numbers):
            problem = f"printed {len(lines)} lines for {len(numbers)} images of {name}"
            raise CaptioningError(f"--program: {self.model!r} {problem}; print one caption a line")
        return [Made(line) for line in lines]


class Transformers:
    """GIT or BLIP from a folder as `transformers` saves it, weights in safetensors."""

    source = "machine"

    def __init__(self, path: str):
        """Opens the folder.

        Raises:
          CaptioningError: `transformers` is not installed, or the folder holds no such model.
        """
        folder = pathlib.Path(path)
        config, files = folder / "config.json", sorted(folder.glob("*.safetensors"))
        if not config.is_file() or not files:
            raise CaptioningError(
                f"--model: {path} has no config.json with .safetensors; save the model as safetensors"
            )
        kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
        if kind not in _MODELS:
            raise CaptioningError(f"--model: {path} is of kind {kind!r}; give one of {', '.join(_MODELS)}")
        try:
            import transformers  # an extra
        except ModuleNotFoundError as error:
            raise CaptioningError("--caption=transformers needs the package; pip install '.[captions]'") from error
        self._processor = transformers.AutoProcessor.from_pretrained(path)
        self._network = getattr(transformers, _MODELS[kind]).from_pretrained(path, use_safetensors=True).eval()
        self.model = f"{kind} ({folder.name})"
        digest = hashlib.sha256()
        for file in files:
            with open(file, "rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
        self.revision = digest.hexdigest()[:16]

    def __call__(self, frames: np.ndarray, video: survey_lib.Video, numbers: Sequence[int]) -> list[Made]:
        images = [Image.fromarray(frame) for frame in frames]
        inputs = self._processor(images=images, return_tensors="pt")
        tokens = self._network.generate(**inputs, max_new_tokens=_NEW_TOKENS)
        return [Made(text.strip()) for text in self._processor.batch_decode(tokens, skip_special_tokens=True)]


def make(kind: str, program: str = "", model: str = "") -> Captioner:
    """The captioner of that kind.

    Raises:
      CaptioningError: unknown, or what it needs is missing.
    """
    if kind not in KINDS:
        raise CaptioningError(f"--caption is {kind!r}; choose one of {', '.join(KINDS)}")
    return {"from_annotations": FromAnnotations, "command": lambda: Command(program)}.get(
        kind, lambda: Transformers(model)
    )()
