"""The processes of a job find one another: `jax.distributed` where there are several, nothing where there is one.

    --hosts=''          by the environment: Slurm (SLURM_NTASKS), GKE (TPU_WORKER_HOSTNAMES); else a single process
    --hosts=tpu         Cloud TPU VMs: the machine's metadata server tells
    --hosts=HOST:PORT   the first process, with --processes and --process
    --hosts=none        a single process, whatever the environment says

jax.distributed ends a process without a word of who is missing. So all report to the first one before it is called, on
the port after the coordinator's, with their version of jax and of this package; it waits TIMEOUT seconds at most and
names those that have not come, or that run something else.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import json
import os
import re
import socket
import time
from typing import Any
import urllib.error
import urllib.request

import jax
from jax.experimental import multihost_utils
import numpy as np

import nuwaxl_jax

TIMEOUT = 60.0  # seconds
_PORT = 8476  # jax's own choice on Cloud TPU
_METADATA = "computeMetadata/v1/instance/attributes"


class HostsError(RuntimeError):
    """The processes did not come together: one line that names who is missing or differs."""


@dataclasses.dataclass(frozen=True)
class Job:
    """Who takes part.

    Attributes:
      address: 'host:port' of the first process.
      count: processes.
      index: of this one.
      names: of all, where the environment tells; else ().
    """

    address: str
    count: int
    index: int
    names: tuple[str, ...] = ()

    def name(self, index: int) -> str:
        """'process 3 (host-3)'."""
        return f"process {index}" + (f" ({self.names[index]})" if index < len(self.names) else "")


def job_of(hosts: str = "", count: int = 0, index: int = -1, environment: Mapping[str, str] = os.environ) -> Job | None:
    """The job of the flags --hosts, --processes and --process; None is a single process.

    Raises:
      ValueError: flags that do not fit together, or a metadata server that is not there.
    """
    by_hand = ":" in hosts
    if by_hand != (count > 0) or by_hand != (index >= 0):
        raise ValueError("--hosts=HOST:PORT, --processes and --process go together; give all three or none")
    if by_hand:
        if not re.fullmatch(r"[^:]+:\d{1,5}", hosts) or not 0 <= index < count:
            raise ValueError(f"--hosts={hosts} --processes={count} --process={index}; give HOST:PORT and 0 <= I < N")
        return Job(hosts, count, index) if count > 1 else None
    if hosts == "none":
        return None
    if hosts == "tpu":
        return _tpu(environment)
    if hosts:
        raise ValueError(f"--hosts is {hosts!r}; give HOST:PORT, tpu, none, or nothing")
    if int(environment.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in environment:
        return _slurm(environment)
    names = tuple(name for name in environment.get("TPU_WORKER_HOSTNAMES", "").split(",") if name)
    if len(names) > 1 and "TPU_WORKER_ID" in environment:
        return Job(f"{names[0]}:{_PORT}", len(names), int(environment["TPU_WORKER_ID"]), names)
    return None


def _slurm(environment: Mapping[str, str]) -> Job:
    """One process a task; the first node of the step leads."""
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "localhost")
    port = 20_000 + int(environment.get("SLURM_JOB_ID", 0)) % 20_000 * 2
    return Job(f"{first_node(nodes)}:{port}", int(environment["SLURM_NTASKS"]), int(environment["SLURM_PROCID"]))


def first_node(nodes: str) -> str:
    """The first of Slurm's list, 'tpu[003-007,9],x' -> 'tpu003'."""
    match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\]([^,]*))?", nodes)
    if match is None:
        raise ValueError(f"SLURM_STEP_NODELIST is {nodes!r}; give --hosts=HOST:PORT, --processes and --process")
    return "".join(part for part in match.groups() if part)


def _tpu(environment: Mapping[str, str]) -> Job | None:
    """What the metadata server of a TPU VM says."""
    server = environment.get("GCE_METADATA_HOST", "metadata.google.internal")

    def ask(name: str) -> str:
        request = urllib.request.Request(f"http://{server}/{_METADATA}/{name}", headers={"Metadata-Flavor": "Google"})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.read().decode()
        except (urllib.error.URLError, OSError) as error:
            problem = f"the metadata server {server} does not tell {name} ({error})"
            raise ValueError(f"--hosts=tpu: {problem}; is this a TPU VM? else give --hosts=HOST:PORT") from error

    endpoints = [entry.split(":")[-1] for entry in ask("worker-network-endpoints").strip().split(",")]
    if len(endpoints) == 1:
        return None
    return Job(f"{endpoints[0]}:{_PORT}", len(endpoints), int(ask("agent-worker-number")), tuple(endpoints))


def join(job: Job | None, timeout: float = TIMEOUT) -> None:
    """Waits for all processes and starts `jax.distributed`; does nothing for a single one.

    To be called before any other use of jax's devices.

    Raises:
      HostsError: processes that have not come within `timeout` seconds, or that run other versions.
    """
    if job is None:
        return
    meet(job, timeout)
    if (jax.config.jax_platforms or "").startswith("cpu"):
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(job.address, job.count, job.index)


def of_first(value: Any) -> Any:
    """A JSON value of the first process, on every process; all must call it."""
    if jax.process_count() == 1:
        return value
    text = json.dumps(value).encode() if jax.process_index() == 0 else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    buffer = np.frombuffer(text.ljust(size), np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(buffer)).tobytes())


def _greeting(index: int) -> dict[str, Any]:
    versions = {"jax": jax.__version__, "nuwaxl_jax": nuwaxl_jax.__version__}
    return {"index": index, "host": socket.gethostname(), "versions": versions}


def meet(job: Job, timeout: float = TIMEOUT) -> None:
    """Returns when every process of the job is there; raises as `join`."""
    host, port = job.address.rsplit(":", 1)
    end = time.monotonic() + timeout
    if job.index == 0:
        _receive(job, int(port) + 1, end, timeout)
    else:
        _report(job, host, int(port) + 1, end, timeout)


def _receive(job: Job, port: int, end: float, timeout: float) -> None:
    """The first process: waits for the others, and tells each whether all are well."""
    mine = _greeting(0)
    came: dict[int, tuple[socket.socket, dict[str, Any]]] = {}
    with socket.create_server(("", port), backlog=job.count) as server:
        while len(came) < job.count - 1 and time.monotonic() < end:
            server.settimeout(max(0.01, end - time.monotonic()))
            try:
                connection, _ = server.accept()
            except OSError:  # nobody
                continue
            greeting = _read(connection)
            if not isinstance(greeting, dict) or greeting.get("index") not in range(1, job.count):
                connection.close()  # nobody of ours
                continue
            if greeting["index"] in came:  # started again
                came[greeting["index"]][0].close()
            came[greeting["index"]] = connection, greeting
    problem = _problem(job, mine, {i: greeting for i, (_, greeting) in came.items()}, timeout)
    for connection, _ in came.values():
        with connection:
            try:
                connection.sendall((json.dumps(problem) + "\n").encode())
            except OSError:
                continue
    if problem:
        raise HostsError(problem)


def _read(connection: socket.socket, seconds: float = 5.0) -> Any:
    """The line of JSON that comes; None where none does."""
    connection.settimeout(seconds)
    try:
        with connection.makefile() as file:
            return json.loads(file.readline(10_000))
    except (OSError, ValueError):
        return None


def _problem(job: Job, mine: dict[str, Any], came: Mapping[int, dict[str, Any]], timeout: float) -> str:
    """What is wrong with who has come; '' if nothing is."""
    missing = [job.name(i) for i in range(1, job.count) if i not in came]
    if missing:
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        there = f"{len(came) + 1} of {job.count} processes are there after {timeout:.0f} s"
        return f"{there}; missing: {', '.join(missing[:8])}{more}; see what their logs say"
    for index, greeting in sorted(came.items()):
        if greeting["versions"] != mine["versions"]:
            differs = (
                f"{job.name(index)} on {greeting['host']} runs {greeting['versions']}, the first {mine['versions']}"
            )
            return f"{differs}; install the same on all"
    return ""


def _report(job: Job, host: str, port: int, end: float, timeout: float) -> None:
    """Every other process: reports to the first and hears whether to go on."""
    connection = None
    while connection is None:
        try:
            connection = socket.create_connection((host, port), timeout=max(0.1, end - time.monotonic()))
        except OSError as error:
            if time.monotonic() >= end:
                where = f"{job.name(0)} at {host}, port {port}"
                raise HostsError(
                    f"{job.name(job.index)}: {where} does not answer for {timeout:.0f} s ({error})"
                ) from error
            time.sleep(0.2)
    with connection:
        try:
            connection.sendall((json.dumps(_greeting(job.index)) + "\n").encode())
            problem = _read(connection, max(0.1, end - time.monotonic()) + 10)
        except OSError:
            problem = None
    if problem is None:
        raise HostsError(f"{job.name(job.index)}: {job.name(0)} has gone without a word; see its log")
    if problem:
        raise HostsError(problem)
