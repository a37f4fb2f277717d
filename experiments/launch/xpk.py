"""The same run on GKE: one `xpk workload create`, which makes a JobSet of a slice's workers.

xpk copies the code into an image, starts the command on every worker, and, within --max-restarts, starts the JobSet
again when a worker ends with 42 (interrupted, resumable) or with 127 to 255 (killed): the exit statuses of a run were
chosen for that. It creates no slice again after a pre-emption: the cluster's node pool does.
"""

from __future__ import annotations

import re
import shlex

from experiments.launch import slices

IMAGE = "python:3.12"


def check(cluster: str, workdir: str, storage: str) -> None:
    """Raises UsageError for what xpk would only find out later."""
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", cluster or ""):
        raise slices.UsageError(
            f"--cluster: {cluster!r} cannot be one; give the name that xpk cluster create was given"
        )
    if not (workdir or "").startswith("/") or not storage:
        raise slices.UsageError(
            "--workdir, --storage: on GKE the workdir lies on a storage of the cluster; xpk storage attach NAME"
            " --type=gcsfuse --mount-point=/data ... once, then --storage=NAME --workdir=/data/FOLDER"
        )


def workload(
    pod: slices.Slice,
    args: tuple[str, ...],
    *,
    cluster: str,
    workdir: str,
    storage: str,
    root: str,
    image: str = "",
    restarts: int = 20,
    num_slices: int = 1,
) -> list[str]:
    """The command.

    Args:
      pod: its name is the workload's, its type the slice's.
      args: of nuwaxl_jax.main, without --workdir.
      cluster, storage: by name, as xpk knows them.
      workdir: a folder under the storage's mount point.
      root: the code that goes into the image.
      image: that has the package and its tpu extra already; '' = Python's, and every start installs.
      restarts: of the whole JobSet.
      num_slices: of this type, together.
    """
    run = ["bash", "experiments/launch/worker.sh", "container", pod.generation, workdir, *args]
    images = [f"--docker-image={image}"] if image else [f"--base-docker-image={IMAGE}", f"--script-dir={root}"]
    return [
        *("xpk", "workload", "create", f"--cluster={cluster}", f"--workload={pod.name}"),
        *(f"--project={pod.project}", f"--zone={pod.zone}"),
        *(f"--tpu-type={pod.accelerator_type}", f"--num-slices={num_slices}", *images),
        *(f"--storage={storage}", f"--max-restarts={restarts}", "--termination-grace-period-seconds=120"),
        *(["--spot"] if pod.spot else []),
        f"--command={shlex.join(run)}",
    ]


def delete(pod: slices.Slice, cluster: str) -> list[str]:
    """Ends the workload; the cluster, which costs too, stays."""
    where = [f"--cluster={cluster}", f"--project={pod.project}", f"--zone={pod.zone}"]
    return ["xpk", "workload", "delete", *where, f"--workload={pod.name}", "--force"]
