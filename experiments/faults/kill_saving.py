"""SIGKILL at random moments of saving: does a fresh process restore, and what is lost?

    python experiments/faults/kill_saving.py [--times=100] [--seed=0]

One process saves small states as fast as it can (background writes, hashes, deletions of old steps), says which saves
are complete, and is killed; another, fresh, restores and compares every array with what that step must hold; the next
saving process goes on from there, in the same folder. Three in ten kills wait for a hashing or a deletion to begin.
Writes results.json beside this file and prints the table.

Processes are forked from one that has imported the program and done nothing else, so a round takes a second, not six.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings

HERE = pathlib.Path(__file__).resolve().parent
SHAPES = {"kernel": (256, 256), "table": (64, 128), "bias": (256,)}


def _tree(step: int, salt: int):
    import numpy as np

    rng = np.random.default_rng((step, salt))
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def _state(step: int):
    """The state of a step: every array is another at every step."""
    import jax
    import jax.numpy as jnp

    from nuwaxl_jax.training import state as state_lib

    params, average, moments = (jax.tree.map(jnp.asarray, _tree(step, salt)) for salt in range(3))
    return state_lib.TrainState(
        step=jnp.int32(step), params=params, ema_params=average, opt_state=(moments, jnp.int32(step))
    )


def _abstract():
    import jax

    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), _state(0))


def _save(directory: str) -> None:
    """Saves step after step until it is killed."""
    from nuwaxl_jax.training import checkpoint

    saver = checkpoint.Checkpointer(directory, checkpoint.Keep(newest=2, every=10))
    step = 0 if saver.is_empty() else saver.restore(_abstract())[1]["step"]
    while True:
        step += 1
        print("saving", step, flush=True)
        saver.save(_state(step), data={"next_batch": step}, config={})
        if step % 3 == 0:
            saver.wait()
            print("complete", step, flush=True)
        elif step > 1:
            print("complete", step - 1, flush=True)  # save waits for the one before


def _restore(directory: str) -> None:
    """Restores, compares, and says what it found."""
    import jax
    import numpy as np

    from nuwaxl_jax.training import checkpoint

    saver = checkpoint.Checkpointer(directory)
    if saver.is_empty():
        print(json.dumps(dict(step=0, equal=True, entries=os.listdir(directory))), flush=True)
        return
    state, meta = saver.restore(_abstract())
    wanted = _state(meta["step"])
    same = jax.tree.map(lambda a, b: bool(np.array_equal(np.asarray(a), np.asarray(b))), state, wanted)
    average = checkpoint.restore_ema(str(pathlib.Path(directory).parents[1]), pathlib.Path(directory).parent.name)
    same = all(jax.tree.leaves(same)) and np.array_equal(average["kernel"], wanted.ema_params["kernel"])
    entries = os.listdir(directory)
    saver.close()
    print(json.dumps(dict(step=meta["step"], equal=bool(same), entries=entries)), flush=True)


def _serve() -> None:
    """Forks a process for each line 'save|restore DIRECTORY OUTPUT' and says its id, then its status."""
    warnings.simplefilter("ignore")
    from nuwaxl_jax.training import checkpoint  # noqa: F401

    for line in sys.stdin:
        what, directory, output = line.rstrip("\n").split("\t")
        child = os.fork()
        if child == 0:
            with open(output, "a") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            try:
                {"save": _save, "restore": _restore}[what](directory)
            except BaseException as error:
                print("failed", type(error).__name__, error, flush=True)
                os._exit(1)
            os._exit(0)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


class _Server:
    def __init__(self):
        paths = [str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
        environment = dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=os.pathsep.join(filter(None, paths)))
        command = [sys.executable, str(HERE / "kill_saving.py"), "--serve"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, what: str, directory: str, output: str) -> int:
        self._process.stdin.write(f"{what}\t{directory}\t{output}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def status(self) -> int:
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(60)


def _moment(directory: str) -> str:
    """What the killed process was doing, from what it left."""
    entries = os.listdir(directory) if os.path.isdir(directory) else []
    for ending, moment in (
        (".orbax-checkpoint-tmp", "writing arrays"),
        (".saving", "hashing"),
        (".deleting", "deleting an old step"),
    ):
        if any(name.endswith(ending) for name in entries):
            return moment
    return "between saves, or starting"


def _wait_for(output: str, word: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.path.exists(output) and word in pathlib.Path(output).read_text():
            return
        time.sleep(0.005)
    raise RuntimeError(f"no {word!r} within {seconds} s: {pathlib.Path(output).read_text()}")


def _wait_until(directory: str, ending: str, seconds: float) -> None:
    """Until a folder of that name is there, or the time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not any(name.endswith(ending) for name in os.listdir(directory)):
        time.sleep(0.0002)


def kill_many(times: int, workdir: str, seed: int = 0) -> list[dict]:
    """One row a kill: moment, reported (newest step said to be complete), restored, good, left (odd entries)."""
    rng, server, rows, reported = random.Random(seed), _Server(), [], 0
    directory = os.path.join(workdir, "linear", "checkpoints")
    try:
        for k in range(times):
            output = os.path.join(workdir, f"save_{k}.txt")
            child = server.start("save", directory, output)
            aim = rng.random()
            if aim < 0.1:  # while it starts, cleans and restores
                time.sleep(rng.uniform(0.0, 0.5))
            else:
                _wait_for(output, "saving", 120)
                time.sleep(rng.uniform(0.0, 0.6))
            if aim > 0.7:  # moments too short to be met by chance
                _wait_until(directory, ".saving" if aim > 0.85 else ".deleting", 2.0)
            os.kill(child, signal.SIGKILL)
            status = server.status()
            said = pathlib.Path(output).read_text() if os.path.exists(output) else ""
            reported = max([reported, *(int(s.split()[1]) for s in said.splitlines() if s.startswith("complete "))])
            moment = _moment(directory)
            output = os.path.join(workdir, f"restore_{k}.txt")
            server.start("restore", directory, output)
            good = server.status() == 0 and status == -signal.SIGKILL
            text = pathlib.Path(output).read_text()
            found = json.loads(text.splitlines()[-1]) if good else dict(step=-1, equal=False, entries=[])
            left = [n for n in found["entries"] if not n.isdigit()]
            good = good and found["equal"] and found["step"] >= reported and not left and "DAMAGED" not in text + said
            rows.append(dict(moment=moment, reported=reported, restored=found["step"], good=good, left=left))
            if not good:
                rows[-1]["said"] = (said + text)[-2000:]
            reported = max(reported, found["step"])
    finally:
        server.close()
    return rows


def table(rows: list[dict]) -> dict[str, dict[str, int]]:
    """{moment: kills, good restores, steps lost that had been reported complete, steps gained that had not}."""
    out = {}
    for row in rows:
        entry = out.setdefault(row["moment"], dict(tried=0, survived=0, steps_lost=0))
        entry["tried"] += 1
        entry["survived"] += row["good"]
        entry["steps_lost"] += max(0, row["reported"] - row["restored"])
    return dict(sorted(out.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return _serve()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as workdir:
        rows = kill_many(arguments.times, workdir, arguments.seed)
    kinds = table(rows)
    total = {name: sum(entry[name] for entry in kinds.values()) for name in ("tried", "survived", "steps_lost")}
    seconds = time.monotonic() - start
    results = dict(
        command=f"python experiments/faults/kill_saving.py --times={arguments.times} --seed={arguments.seed}",
        machine=f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        seconds=round(seconds),
        steps_saved=max((row["restored"] for row in rows), default=0),
        kinds=kinds,
        total=total,
        failures=[row for row in rows if not row["good"]],
    )
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    for name, entry in {**kinds, "all": total}.items():
        print(f"{name:28} {entry['tried']:4} kills {entry['survived']:4} good restores {entry['steps_lost']:3} lost")


if __name__ == "__main__":
    main()
