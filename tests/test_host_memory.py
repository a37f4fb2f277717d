"""Freed memory stays with the process, whichever thread it was freed in."""

import pathlib
import subprocess
import sys

import pytest

from nuwaxl_jax import host_memory

# Four threads take and give back 70 MiB again and again, as XLA's do with a step's buffers, more than an arena of a
# thread's own holds; prints page faults of the rounds after the first two.
_ROUNDS = """
import concurrent.futures, resource, sys
from nuwaxl_jax import host_memory
if sys.argv[1] == "kept":
    assert host_memory.keep_freed_pages()
def touch(_):
    block = bytearray(b"x") * (70 << 20)
    del block
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    for round in range(6):
        if round == 2:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        list(pool.map(touch, range(4)))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", _ROUNDS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


def _huge_pages() -> bool:
    """Whether a fault may bring 2 MiB at once, so that their number says nothing."""
    return "[always]" in pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_threads_find_the_pages_that_they_gave_back():
    pages = 4 * 4 * (70 << 20) // 4096
    assert _faults("given back") > 0.9 * pages or _huge_pages()
    assert _faults("kept") < 0.1 * pages  # with thresholds alone, without the single arena: nearly all


@pytest.mark.parametrize(
    "platforms, plugins, alone", [("cpu", 1, True), ("cuda,cpu", 0, False), ("", 1, False), (None, 0, True)]
)
def test_what_accelerators_there_can_be_is_told_without_asking_jax(monkeypatch, platforms, plugins, alone):
    monkeypatch.setattr(host_memory.metadata, "entry_points", lambda group: ["cuda"] * plugins)
    monkeypatch.setattr(host_memory.importlib.util, "find_spec", lambda name: None)
    assert host_memory.cpu_alone(platforms) == alone
