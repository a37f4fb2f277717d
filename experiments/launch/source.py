"""The code that is sent to the workers: an archive of the commit that is checked out, never what happens to lie around.

The shipped weights (19 MB) go along only where the run may read them; without them the archive is about 2 MB.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import dataclasses
import pathlib
import subprocess
import tempfile

from experiments.launch import gcloud
from experiments.launch import slices

WEIGHTS = "nuwaxl_jax/assets/*.safetensors"


@dataclasses.dataclass(frozen=True)
class Code:
    """What to send.

    Attributes:
      root: of the git repository.
      tree: commit that holds the files.
      label: of folders and records: the commit, with -dirty where changes that are not committed go along.
      with_weights: whether the shipped weights are in the archive.
    """

    root: str
    tree: str
    label: str
    with_weights: bool

    @property
    def file_name(self) -> str:
        """Of the archive, here and in the workers' homes."""
        return f"nuwaxl-{self.label}.tar.gz"


def _git(root: str, *words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise slices.UsageError("git is not on PATH; install it, the workers get an archive of a commit") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise slices.UsageError(f"--code: git in {root} says {said[-1] if said else 'nothing'}; give a git repository")
    return done.stdout.rstrip()


def resolve(root: str, *, allow_dirty: bool, with_weights: bool, dry_run: bool = False) -> Code:
    """The code of a repository as it is now.

    Args:
      root: folder of the repository.
      allow_dirty: send changes to tracked files that are not committed, too.
      with_weights: send the shipped weights, too; training needs none.
      dry_run: write nothing, not even git's objects.

    Raises:
      UsageError: no repository, or changes that a record of the commit would not show.
    """
    commit = _git(root, "rev-parse", "HEAD")[:12]
    tree, label = commit, commit
    changed = [line[3:] for line in _git(root, "status", "--porcelain").splitlines() if line]
    if changed and not allow_dirty:
        raise slices.UsageError(
            f"--code: {len(changed)} files of {root} are not committed, first {changed[0]};"
            " commit, or --allow_dirty (tracked files alone)"
        )
    if changed:
        # A commit of the tracked files as they are; nothing is moved, and no branch or stash knows it.
        tree = "" if dry_run else _git(root, "stash", "create")
        tree, label = tree or commit, f"{commit}-dirty" + (f"-{tree[:6]}" if tree else "")
    return Code(root, tree, label, with_weights)


def pack_command(code: Code, path: str) -> list[str]:
    """What writes the archive."""
    paths = ["."] if code.with_weights else [".", f":(exclude){WEIGHTS}"]
    return ["git", "-C", code.root, "archive", "--format=tar.gz", f"--output={path}", code.tree, "--", *paths]


@contextlib.contextmanager
def packed(runner: gcloud.Runner, code: Code) -> Iterator[str]:
    """The path of the archive, there inside the with block."""
    with tempfile.TemporaryDirectory(prefix="nuwaxl_launch_") as folder:
        path = str(pathlib.Path(tempfile.gettempdir() if runner.dry_run else folder) / code.file_name)
        runner.must(pack_command(code, path), timeout=120)
        yield path


@contextlib.contextmanager
def unpacked(runner: gcloud.Runner, code: Code) -> Iterator[str]:
    """A folder on this machine that holds the commit's files and nothing else, there inside the with block."""
    with packed(runner, code) as path:
        folder = path.removesuffix(".tar.gz")
        runner.must(["mkdir", "-p", folder], timeout=10)
        runner.must(["tar", "-xzf", path, "-C", folder], timeout=120)
        yield folder
