"""One of several processes of a training job; run by test_several_processes.py."""

import importlib.util
import os
import pathlib
import signal
import sys
import time

import jax


def main(index: int, count: int, port: str, workdir: str, num_steps: int, kill_at: int) -> None:
    jax.config.update("jax_num_cpu_devices", 4 // count)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", count, index)
    from nuwaxl_jax import partitioning
    from nuwaxl_jax.training import checkpoint
    from nuwaxl_jax.training import interrupts
    from nuwaxl_jax.training import loop

    path = pathlib.Path(__file__).parent / "conftest.py"
    spec = importlib.util.spec_from_file_location("linear_conftest", path)
    linear = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(linear)

    class Share(linear.Numbers):
        """This process's rows of the same global batches."""

        def __next__(self):
            batch = super().__next__()
            rows = slice(index * len(batch["x"]) // count, (index + 1) * len(batch["x"]) // count)
            return {name: value[rows] for name, value in batch.items()}

    def kill(stage, state, frozen, step):
        del stage, state, frozen
        if step == kill_at and index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1.0 if 0 < kill_at <= step else 0.0)  # the processes agree within a few seconds
        return {}

    with interrupts.catch() as interrupt:
        state = loop.run_stage(
            linear.LinearTask(),
            {"scale": 1.0},
            Share(),
            linear.settings(num_steps=num_steps, eval_every=1),
            os.path.join(workdir, "linear"),
            mesh=partitioning.make_mesh(fsdp=2),
            seed=11,
            config={},
            interrupt=interrupt,
            hooks={"eval": kill},
        )
    ema = checkpoint.restore_ema(workdir, "linear")  # every process reads it by itself
    print("finished", int(state.step), float(ema["dense"]["kernel"].sum()), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5]), int(sys.argv[6]))
