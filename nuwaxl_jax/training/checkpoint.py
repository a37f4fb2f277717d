"""Checkpoints: Orbax, a position in the data, the config, and a fingerprint of every array.

    <workdir>/config.json                 the resolved config
    <workdir>/<stage>/checkpoints/<step>/ state, ema, meta (step, data position, fingerprints, config)

The EMA is an item of its own, so sampling reads it alone. Orbax does not notice a flipped byte in an array it restores;
the fingerprint, computed before the save and after the restore, does: it is a sum of the array's words under odd
weights modulo 2^32, so one changed element always changes it, and it does not depend on the sharding.

The only file that uses Orbax.
"""

import json
import os
from typing import Any

from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp

from nuwaxl_jax import config as config_lib
from nuwaxl_jax import files
from nuwaxl_jax import partitioning
from nuwaxl_jax.training import metrics
from nuwaxl_jax.training import state as state_lib

CONFIG_FILE = "config.json"
_FOLDER = "checkpoints"
_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32}


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used. The message names the folder and the mend."""


def _partial(block: np.ndarray, start: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """The sum over `block`, which begins at `start` of an array of `shape`."""
    bits = np.ascontiguousarray(block).reshape(*block.shape, 1)
    bits = bits.view(_BITS[min(bits.dtype.itemsize, 4)])  # 8-byte types: the last axis doubles
    index = np.zeros((1,) * bits.ndim, np.uint32)
    for d, size in enumerate((*shape, bits.shape[-1])):
        place = np.arange(bits.shape[d], dtype=np.uint32) + np.uint32(start[d] if d < len(start) else 0)
        index = index * np.uint32(size % 2**32) + place.reshape(-1, *(1,) * (bits.ndim - d - 1))
    index = (index ^ (index >> np.uint32(15))) * np.uint32(0x2C1B3C6D)  # mixed, so that swapped neighbours show too
    return int(np.sum(bits * (np.uint32(2) * index + np.uint32(1)), dtype=np.uint32))


def _fingerprint(x: Any) -> int:
    """This process's share: each piece of the array counts once over all processes."""
    if not isinstance(x, jax.Array):
        return _partial(np.asarray(x), (0,) * np.ndim(x), np.shape(x))
    pieces = [(np.asarray(piece.data), piece.index) for piece in x.addressable_shards if piece.replica_id == 0]
    return sum(_partial(data, tuple(i.start or 0 for i in index), x.shape) for data, index in pieces) % 2**32


def fingerprints(tree: Any) -> dict[str, int]:
    """{path: number} of a tree of arrays, the same on every process and under every sharding; waits for the device.

    On the host: compiled, the hundreds of arrays of a state would take longer than the sums themselves.
    """
    named = [(partitioning.path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    sums = np.array([_fingerprint(leaf) for _, leaf in named], np.uint32)
    if jax.process_count() > 1 and any(isinstance(leaf, jax.Array) for _, leaf in named):
        sums = np.sum(multihost_utils.process_allgather(sums), axis=0, dtype=np.uint32)
    return dict(zip((name for name, _ in named), sums.tolist()))


def _verify(tree: Any, saved: dict[str, int], where: str) -> None:
    found = fingerprints(tree)
    wrong = [name for name in sorted(set(found) | set(saved)) if found.get(name) != saved.get(name)]
    if wrong:
        raise CheckpointError(
            f"{where}: {len(wrong)} of {len(found)} arrays are not what was saved, first {wrong[0]!r}: "
            "the files are damaged; delete this folder to resume from the step before it."
        )


def _items(state: state_lib.TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
    """(state item, ema item)."""
    item = dict(step=state.step, params=state.params, opt_state=state.opt_state)
    return item if state.extra is None else dict(item, extra=state.extra), dict(params=state.ema_params)


class Checkpointer:
    """Saves and restores the states of one stage. Close it: only then is the last save complete."""

    def __init__(self, directory: str, keep: int = 2):
        self.directory = os.path.abspath(directory)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, cleanup_tmp_directories=True, enable_async_checkpointing=True
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def latest_step(self) -> int | None:
        """The newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: state_lib.TrainState, *, data: dict[str, Any] | None, config: dict[str, Any]) -> None:
        """Starts to save; returns when the arrays are copied, and writes in the background.

        Args:
          state: saved under its step; a step that is already saved is left as it is.
          data: JSON position of the data iterator: the next batch it yields is the one after this state.
          config: the resolved config as JSON values.

        Raises:
          Exception: what an earlier background save raised.
        """
        self.check()
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        item, ema = _items(state)
        meta = dict(
            step=step, data=data, config=config, fingerprints=dict(state=fingerprints(item), ema=fingerprints(ema))
        )
        self._manager.save(
            step,
            force=True,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(item), ema=ocp.args.StandardSave(ema), meta=ocp.args.JsonSave(meta)
            ),
        )

    def check(self) -> None:
        """Raises what a background save raised."""
        self._manager.check_for_errors()

    def restore(
        self, abstract: state_lib.TrainState, step: int | None = None
    ) -> tuple[state_lib.TrainState, dict[str, Any]]:
        """(state, meta) of `step` or the latest, laid out as `abstract` (ShapeDtypeStructs with shardings).

        Any mesh may restore what any other saved.

        Raises:
          CheckpointError: nothing there, a model of other shapes, or damaged files.
        """
        step = self.latest_step() if step is None else step
        where = os.path.join(self.directory, str(step))
        if step is None:
            raise CheckpointError(f"{self.directory}: no complete checkpoint; train this stage first.")
        item, ema = _items(abstract)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(item), ema=ocp.args.StandardRestore(ema), meta=ocp.args.JsonRestore()
                ),
            )
        except Exception as error:
            raise CheckpointError(
                f"{where}: cannot be restored ({type(error).__name__}: {_line(error)}); if the config "
                "is the one it was saved with, its files are damaged: delete this folder to resume "
                "from the step before it."
            ) from error
        _verify(restored.state, restored.meta["fingerprints"]["state"], where)
        _verify(restored.ema, restored.meta["fingerprints"]["ema"], where)
        state = state_lib.TrainState(
            step=restored.state["step"],
            params=restored.state["params"],
            ema_params=restored.ema["params"],
            opt_state=restored.state["opt_state"],
            extra=restored.state.get("extra"),
        )
        return state, restored.meta

    def wait(self) -> None:
        """Returns when every save is on disk; raises what one of them raised."""
        self._manager.wait_until_finished()
        self.check()

    def close(self) -> None:
        """Waits and releases."""
        self.wait()
        self._manager.close()


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 300 else text[:300] + "..."


def stage_directory(workdir: str, stage: str) -> str:
    """Where the checkpoints of a stage lie."""
    return os.path.join(os.path.abspath(workdir), stage, _FOLDER)


def latest_step(workdir: str, stage: str) -> int | None:
    """The newest complete checkpoint of a stage, or None; creates nothing."""
    directory = stage_directory(workdir, stage)
    if not os.path.isdir(directory):
        return None
    steps = ocp.utils.checkpoint_steps(directory)
    return max(steps) if steps else None


def restore_ema(workdir: str, stage: str, step: int | None = None) -> Any:
    """The averaged parameters of a stage as a tree of numpy arrays, on any machine, whatever mesh saved them.

    Raises:
      CheckpointError: no checkpoint, or a damaged one.
    """
    step = latest_step(workdir, stage) if step is None else step
    if step is None:
        raise CheckpointError(
            f"{stage_directory(workdir, stage)}: no complete checkpoint; train stage {stage!r} first."
        )
    where = os.path.join(stage_directory(workdir, stage), str(step))
    path = epath.Path(where) / "ema"
    try:
        # The handler alone: no devices, no barrier, so any process may read without the others.
        reader = ocp.PyTreeCheckpointHandler()
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(path).tree)
        tree = reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
        with open(os.path.join(where, "meta", "metadata"), encoding="utf-8") as file:
            meta = json.load(file)
    except Exception as error:
        raise CheckpointError(
            f"{where}: cannot be restored ({type(error).__name__}: {_line(error)}); its files are "
            "damaged: delete this folder to use the step before it."
        ) from error
    _verify(tree, meta["fingerprints"]["ema"], where)
    return tree["params"]


# Fields that may differ from those the workdir was made with: they change how long, how often, how fast or where, or
# concern sampling alone.
_FREE_FIELDS = ("num_steps", "log_every", "eval_every", "sample_every", "checkpoint_every", "keep")
_FREE_PREFIXES = (
    "name",
    "train.stages",
    "mesh.",
    "sampler.",
    "vae.lpips_weights",
    "text.vocabulary",
    "train.init_from",
    "eval.",
    "data.cache",
    "data.num_workers",
    "data.num_threads",
    "data.prefetch",
    "data.num_eval_episodes",
    "hierarchy.chunk",
    "hierarchy.microbatch",
    "hierarchy.overlap",
    "hierarchy.strategy",
)


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    out = {}
    for key, value in values.items():
        if isinstance(value, dict):
            out.update(_flat(value, f"{prefix}{key}."))
        else:
            out[f"{prefix}{key}"] = value
    return out


def _is_free(name: str) -> bool:
    return name.rsplit(".", 1)[-1] in _FREE_FIELDS or name.startswith(_FREE_PREFIXES)


def claim_workdir(workdir: str, config_json: str) -> None:
    """Writes <workdir>/config.json, unless the one there is of another experiment.

    Args:
      workdir: made where it does not exist.
      config_json: the resolved config as JSON.

    Raises:
      ValueError: listing each field that differs, cadences and lengths apart.
    """
    path = os.path.join(os.path.abspath(workdir), CONFIG_FILE)
    given = json.loads(config_json)
    if os.path.exists(path):
        try:
            with open(path, encoding="utf-8") as file:
                saved = json.loads(text := file.read())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON ({error}); restore it, or choose a new workdir.") from error
        new = _flat(given)
        # A field younger than the workdir has the value that was used before it existed.
        since = {name: value for name, value in _flat(config_lib.completed(text)).items() if name in new}
        old = {**since, **_flat(saved)}
        missing = "(absent)"
        wrong = [
            f"{name} {old.get(name, missing)!r} -> {new.get(name, missing)!r}"
            for name in sorted({*old, *new})
            if old.get(name, missing) != new.get(name, missing) and not _is_free(name)
        ]
        if wrong:
            raise ValueError(
                f"{workdir} was made with another config: " + "; ".join(wrong) + "; use those values or a new workdir."
            )
        if saved == given:
            return
    if jax.process_index() == 0:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        files.write_json(path, given)
        metrics.say(f"config: {path}")
