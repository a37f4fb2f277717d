"""Who takes part in a job, and who is named when somebody does not come."""

import http.server
import socket
import threading

import jax
import pytest

from nuwaxl_jax import hosts


def free_port():
    with socket.socket() as one, socket.socket() as other:
        one.bind(("localhost", 0))
        port = one.getsockname()[1]
        try:
            other.bind(("localhost", port + 1))
        except OSError:
            return free_port()
        return port


def outcomes(jobs, timeout=10.0):
    """What `meet` of each job ended with: None, or the message."""
    out = {}

    def run(job):
        try:
            hosts.meet(job, timeout)
            out[job.index] = None
        except hosts.HostsError as error:
            out[job.index] = str(error)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return out


def jobs(count, present=None, names=()):
    address = f"localhost:{free_port()}"
    return [hosts.Job(address, count, i, names) for i in (range(count) if present is None else present)]


def test_all_come_and_all_go_on():
    assert outcomes(jobs(4)[::-1]) == dict.fromkeys(range(4))


def test_who_is_missing_is_named_to_everyone():
    names = ("a", "b", "c", "d")
    said = outcomes(jobs(4, [0, 2], names), timeout=1.0)
    expected = "2 of 4 processes are there after 1 s; missing: process 1 (b), process 3 (d)"
    assert said[0].startswith(expected) and said[2].startswith(expected)


def test_without_the_first_the_others_say_so():
    said = outcomes(jobs(3, [1, 2]), timeout=0.6)
    assert all(f"process {i}: process 0 at localhost, port" in said[i] for i in (1, 2))
    assert "does not answer for 1 s" in said[1]


def test_another_version_is_named(monkeypatch):
    greeting = hosts._greeting

    def older(index):
        return greeting(index) | ({"versions": {"jax": "0.4"}} if index == 2 else {})

    monkeypatch.setattr(hosts, "_greeting", older)
    said = outcomes(jobs(3))
    assert all("process 2 on" in said[i] and "'0.4'" in said[i] and "install the same" in said[i] for i in range(3))


def test_a_stranger_at_the_door_changes_nothing():
    address = f"localhost:{free_port()}"
    host, port = address.split(":")

    def knock():
        for text in (b"GET / HTTP/1.0\r\n\r\n", b""):
            while True:
                try:
                    with socket.create_connection((host, int(port) + 1), timeout=5) as stranger:
                        stranger.sendall(text)
                    break
                except ConnectionRefusedError:
                    continue

    first = threading.Thread(target=knock)
    first.start()
    said = []
    server = threading.Thread(target=lambda: said.append(hosts.meet(hosts.Job(address, 2, 0), 10.0)))
    server.start()
    first.join()
    hosts.meet(hosts.Job(address, 2, 1), 10.0)
    server.join()
    assert said == [None]


def test_by_hand():
    assert hosts.job_of("h:1", 4, 3, {}) == hosts.Job("h:1", 4, 3)
    assert hosts.job_of("h:1", 1, 0, {}) is None
    for wrong in (
        ("h:1", 4, 4),
        ("h:1", 4, -1),
        ("h:1", 0, 0),
        ("", 2, 1),
        ("tpu", 2, 1),
        ("h:port", 2, 1),
        ("gke", 0, -1),
    ):
        with pytest.raises(ValueError, match="--hosts"):
            hosts.job_of(*wrong, {})


@pytest.mark.parametrize(
    "nodes, first",
    [("tpu[003-007,9],x", "tpu003"), ("n1", "n1"), ("a,b", "a"), ("r[2,4]n,z", "r2n"), ("gpu-1[0-3]", "gpu-10")],
)
def test_slurm(nodes, first):
    environment = dict(SLURM_NTASKS="8", SLURM_PROCID="5", SLURM_STEP_NODELIST=nodes, SLURM_JOB_ID="40007")
    assert hosts.job_of(environment=environment) == hosts.Job(f"{first}:20014", 8, 5)
    assert hosts.job_of("none", environment=environment) is None
    assert hosts.job_of(environment=dict(environment, SLURM_NTASKS="1")) is None


def test_gke():
    job = hosts.job_of(environment=dict(TPU_WORKER_HOSTNAMES="w-0.x,w-1.x", TPU_WORKER_ID="1"))
    assert job == hosts.Job("w-0.x:8476", 2, 1, ("w-0.x", "w-1.x"))
    assert hosts.job_of(environment=dict(TPU_WORKER_HOSTNAMES="localhost", TPU_WORKER_ID="0")) is None
    assert hosts.job_of(environment={}) is None


def test_a_tpu_vm_is_asked():
    facts = {
        "worker-network-endpoints": "unknown:unknown:10.0.0.2,unknown:unknown:10.0.0.3",
        "agent-worker-number": "1",
    }

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.rsplit("/", 1)[-1]
            self.send_response(200 if name in facts and self.headers["Metadata-Flavor"] == "Google" else 404)
            self.end_headers()
            self.wfile.write(facts.get(name, "").encode())

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("localhost", 0), Metadata) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        environment = {"GCE_METADATA_HOST": f"localhost:{server.server_port}"}
        try:
            assert hosts.job_of("tpu", environment=environment) == hosts.Job(
                "10.0.0.2:8476", 2, 1, ("10.0.0.2", "10.0.0.3")
            )
            facts["worker-network-endpoints"] = "unknown:unknown:10.0.0.2"
            assert hosts.job_of("tpu", environment=environment) is None
            del facts["worker-network-endpoints"]
            with pytest.raises(ValueError, match="--hosts=tpu: the metadata server .* does not tell worker-network"):
                hosts.job_of("tpu", environment=environment)
        finally:
            server.shutdown()
            thread.join()


def test_a_single_process_never_calls_jax(monkeypatch):
    called = []
    monkeypatch.setattr(hosts.jax.distributed, "initialize", lambda *arguments: called.append(arguments))
    monkeypatch.setattr(hosts, "meet", lambda *_: None)
    before = jax.config.jax_cpu_collectives_implementation
    try:
        hosts.join(None)
        assert not called and jax.config.jax_cpu_collectives_implementation == before
        hosts.join(hosts.Job("localhost:1", 2, 1))
        assert called == [("localhost:1", 2, 1)] and jax.config.jax_cpu_collectives_implementation == "gloo"
    finally:
        jax.config.update("jax_cpu_collectives_implementation", before)
