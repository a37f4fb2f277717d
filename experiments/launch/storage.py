"""Where a run's workdir lies. Every worker must see the same folder, and the package reads and writes plain paths.

gs://bucket/folder        the bucket is mounted on every worker with gcsfuse
nfs://address/share/folder   a Filestore instance or another NFS server; the first part of the path is its share
/mnt/folder               a disk that something else mounts on every worker; the preflight checks that it is shared
"""

from __future__ import annotations

import dataclasses
import re

from experiments.launch import slices

_MOUNTS = "/mnt/nuwaxl"


@dataclasses.dataclass(frozen=True)
class Place:
    """A workdir.

    Attributes:
      path: on the workers.
      source: what to mount there, gs://bucket or nfs://address/share; '' = nothing.
      target: mount point.
    """

    path: str
    source: str = ""
    target: str = ""


def resolve(workdir: str) -> Place:
    """Of --workdir.

    Raises:
      UsageError: not a place that every worker can see.
    """
    if not workdir:
        raise slices.UsageError(
            "--workdir is missing; give gs://bucket/folder, nfs://address/share/folder or /mnt/folder"
        )
    cloud = re.fullmatch(r"gs://([a-z0-9][-a-z0-9_.]{1,61}[a-z0-9])/(.+?)/*", workdir)
    if cloud:
        target = f"{_MOUNTS}/{cloud.group(1)}"
        return Place(f"{target}/{cloud.group(2)}", f"gs://{cloud.group(1)}", target)
    share = re.fullmatch(r"nfs://([A-Za-z0-9_.-]+)/([^/]+)/(.+?)/*", workdir)
    if share:
        target = f"{_MOUNTS}/{share.group(1)}-{share.group(2)}"
        return Place(f"{target}/{share.group(3)}", f"nfs://{share.group(1)}/{share.group(2)}", target)
    if workdir.startswith(("gs:", "nfs:")):
        raise slices.UsageError(
            f"--workdir: {workdir!r} names no folder; give gs://bucket/folder or nfs://address/share/folder"
        )
    if not workdir.startswith("/") or workdir.rstrip("/") == "":
        raise slices.UsageError(
            f"--workdir: {workdir!r} is a folder of this machine, the workers have none; give gs://bucket/folder,"
            " nfs://address/share/folder, or the path of a disk that every worker mounts"
        )
    return Place(workdir.rstrip("/"))
