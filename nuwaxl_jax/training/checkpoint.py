"""Checkpoints: saved while training goes on, verified before use, stepped over where damaged. The only file with Orbax.

    <workdir>/<stage>/checkpoints/<step>/ state, ema, meta (step, data position, fingerprints, config), SHA256SUMS

A save: Orbax writes <step>.saving in the background and renames it when it is whole; then the first process hashes
every file into SHA256SUMS (`manifest`), renames it to <step>, and deletes what `retention` does not keep. So a step
that has its name has its hashes; <step>.saving is complete without them, and after a kill its fingerprints decide.

A restore: every file is hashed (each process reads its share), then read, then every array is fingerprinted, because
Orbax does not notice a flipped byte. Damage sends it to the step before, with one loud line; the damaged folder is
renamed, not deleted, and only once an older step has proved good. A model of another shape is no damage.

The EMA is an item of its own, so sampling reads it alone.
"""

import contextlib
import os
import threading
import time
from typing import Any, Iterator

from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp

from nuwaxl_jax import partitioning
from nuwaxl_jax.training import fingerprints as fingerprints_lib
from nuwaxl_jax.training import metrics
from nuwaxl_jax.training import retention
from nuwaxl_jax.training import state as state_lib
from nuwaxl_jax.training import step_folders
from nuwaxl_jax.training import workdirs

CONFIG_FILE = workdirs.CONFIG_FILE
CheckpointError = step_folders.CheckpointError
Keep = retention.Keep
claim_workdir = workdirs.claim_workdir
stage_directory = workdirs.stage_directory
fingerprints = fingerprints_lib.fingerprints

_NOT_DAMAGE = "!"


def _together(name: str) -> None:
    """No process goes on before every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _agreed(problem: str) -> str:
    """What the first process that met a problem met; '' where none did. The same on every process."""
    if jax.process_count() == 1:
        return problem
    text = np.frombuffer(problem.encode()[:400].ljust(400), np.uint8)
    said = [row.tobytes().decode(errors="replace").strip() for row in multihost_utils.process_allgather(text)]
    return next(filter(None, said), "")


def _items(state: state_lib.TrainState) -> dict[str, dict[str, Any]]:
    item = dict(step=state.step, params=state.params, opt_state=state.opt_state)
    return dict(state=item if state.extra is None else dict(item, extra=state.extra), ema=dict(params=state.ema_params))


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {partitioning.path_name(p): tuple(x.shape) for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def _check_model(path: str, item: str, abstract: Any) -> None:
    """Raises CheckpointError where the arrays that were saved have other names or shapes than `abstract`."""
    saved = _shapes(ocp.PyTreeCheckpointHandler().metadata(epath.Path(path) / item).tree)
    wanted = _shapes(abstract)
    for name in sorted(set(saved) | set(wanted)):
        if saved.get(name) != wanted.get(name):
            raise CheckpointError(
                f"{path}: was saved from another model or optimiser: {item}/{name} is {saved.get(name, '(absent)')} "
                f"there and {wanted.get(name, '(absent)')} in this config; use the config it was saved with, or a new "
                "workdir."
            )


def read_item(path: str, item: str) -> Any:
    """The arrays of one item ('state', 'ema') as nested dicts and lists of numpy arrays.

    The handler alone: no devices, no barrier, so any machine and any process may read without the others.
    """
    reader, where = ocp.PyTreeCheckpointHandler(), epath.Path(path) / item
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(where).tree)
    return reader.restore(where, args=ocp.args.PyTreeRestore(restore_args=as_numpy))


def read_verified(path: str, items: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any], str]:
    """(trees of numpy arrays, meta, '') of a folder, or ({}, {}, what is wrong with it): files, then arrays."""
    problem = step_folders.problem(path, tuple(f"{name}/" for name in (*items, "meta")))
    if problem:
        return {}, {}, problem
    try:
        meta = step_folders.read_meta(path)
        trees = {item: read_item(path, item) for item in items}
        for item in items:
            problem = problem or fingerprints_lib.problem(trees[item], meta["fingerprints"][item])
    except MemoryError:
        raise
    except Exception as error:  # whatever Orbax and TensorStore raise on damaged files
        problem = f"cannot be read ({type(error).__name__}: {step_folders.line(error)})"
    return ({}, {}, problem) if problem else (trees, meta, "")


def write(path: str, items: dict[str, Any], meta: dict[str, Any]) -> None:
    """Writes trees of numpy arrays and meta into `path` (<step>.saving or <step>.slimming), unsealed."""
    args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
    with contextlib.closing(ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())) as writer:
        writer.save(path, args=ocp.args.Composite(**args, meta=ocp.args.JsonSave(meta)), force=True)


def new_meta(step: int, items: dict[str, Any], **rest: Any) -> dict[str, Any]:
    """What meta/metadata holds of `items`; `rest`: data, config, metrics."""
    prints = {name: fingerprints(tree) for name, tree in items.items()}
    return dict(rest, step=step, time=time.time(), format=step_folders.FORMAT, fingerprints=prints)


class Checkpointer:
    """Saves and restores the states of one stage. Close it: only then is the last save complete.

    Making one removes what a killed save left. Every process makes one; only one job writes to a directory.
    """

    def __init__(self, directory: str, keep: Keep = Keep()):
        self.directory = os.path.abspath(directory)
        self._keep = keep
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._step = -1  # being saved
        if jax.process_index() == 0:
            os.makedirs(self.directory, exist_ok=True)
            step_folders.clean(self.directory)
        _together("checkpoints cleaned")
        self._saved = set(step_folders.steps(self.directory))
        self._measured = retention.Measured(self.directory)
        self._writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())

    def is_empty(self) -> bool:
        """Whether the stage has nothing to resume from: no step, whole or damaged or slimmed."""
        return not (step_folders.steps(self.directory) or step_folders.resumable(self.directory))

    def save(
        self,
        state: state_lib.TrainState,
        *,
        data: dict[str, Any] | None,
        config: dict[str, Any],
        measured: dict[str, float] | None = None,
        log: dict[str, Any] | None = None,
    ) -> None:
        """Starts to save; returns when the arrays are copied, and writes in the background.

        Args:
          state: saved under its step; a step that is already saved is left as it is.
          data: JSON position of the data iterator: the next batch it yields is the one after this state.
          config: the resolved config as JSON values.
          measured: metrics of this step, for `Keep.best`.
          log: JSON, what the training log has gathered and not yet written.

        Raises:
          CheckpointError: this save, or the one before it, could not be written.
        """
        self._join()
        step = int(state.step)
        if step in self._saved:
            return
        items = _items(state)
        meta = new_meta(step, items, data=data, config=config, metrics=measured or {}, log=log)
        path = step_folders.path_of(self.directory, step) + step_folders.SAVING
        args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        self._step = step
        try:
            self._writer.save(path, args=ocp.args.Composite(**args, meta=ocp.args.JsonSave(meta)), force=True)
        except Exception as error:
            raise self._failure(error) from error
        self._saved.add(step)
        self._thread = threading.Thread(target=self._finish, args=(path,), name="checkpoint")
        self._thread.start()

    def _finish(self, path: str) -> None:
        """In the background: waits for Orbax; then the first process seals the step and deletes old ones."""
        try:
            self._writer.wait_until_finished()
            if jax.process_index() == 0:
                step_folders.seal(path)
                self._retire()
        except BaseException as error:  # raised at the next step, by `check`
            self._error = error

    def _retire(self) -> None:
        steps = step_folders.steps(self.directory)
        stay = retention.kept(map(self._measured.saved, steps), self._keep)
        for step in steps:
            if step not in stay:
                try:
                    step_folders.remove(step_folders.path_of(self.directory, step))
                except OSError as error:  # the save itself is good
                    metrics.warn(f"{self.directory}/{step}: cannot be deleted ({step_folders.line(error)})")

    def note(self, step: int, measured: dict[str, float]) -> None:
        """Adds what was measured on `step` after it was saved, for `Keep.best`."""
        if jax.process_index() == 0 and step in self._saved:
            self._measured.add(step, measured)

    def check(self) -> None:
        """Raises what a background save raised; waits for nothing."""
        if self._thread is not None and not self._thread.is_alive():
            self._join()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise self._failure(error) from error

    def _failure(self, error: BaseException) -> CheckpointError:
        good = max(step_folders.steps(self.directory), default=None)
        have = "there is no complete one" if good is None else f"the newest complete one is {good}"
        return CheckpointError(
            f"{self.directory}: the checkpoint of step {self._step} could not be written ({type(error).__name__}: "
            f"{step_folders.line(error)}); {have}. Mend that (space? rights?); the same command resumes."
        )

    def restore(
        self, abstract: state_lib.TrainState, step: int | None = None
    ) -> tuple[state_lib.TrainState, dict[str, Any]]:
        """(state, meta) of the newest good step, laid out as `abstract` (ShapeDtypeStructs with shardings).

        Any mesh may restore what any other saved. Damaged steps that are newer are set aside, with a line each.

        Args:
          abstract: what to restore.
          step: this one or none.

        Raises:
          CheckpointError: nothing there, nothing good there, or a model of other shapes.
        """
        self._join()
        found = [p for p in step_folders.resumable(self.directory) if step in (None, step_folders.number(p))]
        if not found:
            slim = step_folders.steps(self.directory)
            problem = f"no complete checkpoint{'' if step is None else f' of step {step}'}; train this stage first."
            if slim and step in (None, *slim):
                problem = "only slimmed checkpoints, which training cannot resume from; use a new workdir."
            raise CheckpointError(f"{self.directory}: {problem}")
        damaged = []
        for path in found:
            restored, meta, problem = _restore(path, _items(abstract))
            if not problem:
                break
            damaged.append((path, problem))
        else:
            raise step_folders.none_good(self.directory, damaged)
        self._step_back(damaged, path)
        state = state_lib.TrainState(
            step=restored["state"]["step"],
            params=restored["state"]["params"],
            ema_params=restored["ema"]["params"],
            opt_state=restored["state"]["opt_state"],
            extra=restored["state"].get("extra"),
        )
        return state, meta

    def _step_back(self, damaged: list[tuple[str, str]], good: str) -> None:
        """Sets the damaged aside and seals the good one where that is still to do."""
        if jax.process_index() == 0:
            step_folders.step_back(damaged, step_folders.number(good))
            if good.endswith(step_folders.SAVING):
                step_folders.seal(good)
        newer = [s for s in step_folders.steps(self.directory) if s > step_folders.number(good)]
        if newer and not damaged:
            metrics.warn(f"{self.directory}: {newer[-1]} is slimmed; training resumes from {step_folders.number(good)}")
        _together("damaged checkpoints set aside")
        self._saved = set(step_folders.steps(self.directory))

    def wait(self) -> None:
        """Returns when every save is on disk, on every process; raises what one of them raised."""
        self._join()
        _together("checkpoints written")

    def close(self) -> None:
        """Waits and releases."""
        try:
            self._join()
        finally:
            self._writer.close()


def _restore(path: str, items: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], str]:
    """({item: tree}, meta, '') laid out as `items`, or (.., .., what is damaged): the same on every process.

    Raises:
      CheckpointError: another model; or files that are as they were written and still cannot be restored.
    """
    problem = _agreed(step_folders.problem(path, share=(jax.process_index(), jax.process_count())))
    if problem:
        return {}, {}, problem
    sealed, restored, meta = step_folders.manifest.exists(path), {}, {}
    try:
        meta = step_folders.read_meta(path)
        for item, abstract in items.items():
            _check_model(path, item, abstract)
            restored[item] = ocp.StandardCheckpointHandler().restore(
                epath.Path(path) / item, args=ocp.args.StandardRestore(abstract)
            )
    except CheckpointError:
        raise
    except Exception as error:  # whatever Orbax and TensorStore raise on damaged files
        problem = f"cannot be restored ({type(error).__name__}: {step_folders.line(error)})"
        if sealed or isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            problem = f"{_NOT_DAMAGE}{problem}"
    problem = _agreed(problem)
    if problem.startswith(_NOT_DAMAGE):
        raise CheckpointError(f"{path}: {problem.removeprefix(_NOT_DAMAGE)}; its files are not known to be damaged.")
    for item in () if problem else items:
        problem = problem or fingerprints_lib.problem(restored[item], meta["fingerprints"][item])
    return restored, meta, problem


# Folders that this process found damaged when it read an average. A reader renames nothing: the workdir may be another
# job's, and its own disk may be at fault.
_passed_over: set[str] = set()


def latest_step(workdir: str, stage: str) -> int | None:
    """The newest complete checkpoint of a stage that is not known to be damaged, or None; creates nothing."""
    directory = stage_directory(workdir, stage)
    steps = [s for s in step_folders.steps(directory) if step_folders.path_of(directory, s) not in _passed_over]
    return max(steps, default=None)


def settle(workdir: str, stage: str) -> int | None:
    """`latest_step`, its files verified and damaged ones set aside: for the job that writes here, before it skips a
    stage as finished. Every process calls it.

    Raises:
      CheckpointError: the newest is damaged, and none before it is good.
    """
    directory = stage_directory(workdir, stage)
    share, damaged = (jax.process_index(), jax.process_count()), []
    for step in reversed(step_folders.steps(directory)):
        path = step_folders.path_of(directory, step)
        problem = _agreed(step_folders.problem(path, share=share))
        if not problem:
            if jax.process_index() == 0:
                step_folders.step_back(damaged, step)
            _together("damaged checkpoints set aside")
            return step
        damaged.append((path, problem))
    if damaged:
        raise step_folders.none_good(directory, damaged)
    return None


def _newest_first(directory: str, step: int | None) -> Iterator[int]:
    """Steps to try: each once, newest first, and those that appear meanwhile."""
    tried: set[int] = set()
    while left := [s for s in step_folders.steps(directory) if s not in tried and step in (None, s)]:
        tried.add(left[-1])
        yield left[-1]


def restore_ema(workdir: str, stage: str, step: int | None = None) -> Any:
    """The averaged parameters of a stage as a tree of numpy arrays, on any machine, whatever mesh saved them.

    Verified as a restore is. Without `step`, the newest good one, with a line for each damaged one that is newer.

    Raises:
      CheckpointError: no checkpoint, or none that is good.
    """
    directory = stage_directory(workdir, stage)
    damaged: list[tuple[str, str]] = []
    for number in _newest_first(directory, step):
        path = step_folders.path_of(directory, number)
        trees, _, problem = read_verified(path, ("ema",))
        if not problem:
            for bad, why in damaged:
                _passed_over.add(bad)
                lost = step_folders.number(bad) - number
                metrics.warn(
                    f"DAMAGED CHECKPOINT {bad} ({why}): using step {number} of {stage}, {lost} steps before it"
                )
            return trees["ema"]["params"]
        if os.path.isdir(path):  # else a running job has just replaced it by a newer one
            damaged.append((path, problem))
    if damaged:
        raise step_folders.none_good(directory, damaged)
    problem = "no complete checkpoint" if step is None else f"no complete checkpoint of step {step}"
    raise CheckpointError(f"{directory}: {problem}; train stage {stage!r} first.")
