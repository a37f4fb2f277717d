"""Work that several processes do apart: they leave together, whoever was told and whoever has finished."""

import numpy as np
import pytest

from nuwaxl_jax.training import interrupts


@pytest.fixture
def job(monkeypatch):
    """A job of two; job['others'] is whether the other was told, job['point'] the count that the service has set."""
    job = dict(others=False, point=None, asked=[], seconds=100.0)

    def reached(count):
        job["asked"].append(count)
        return count == job["point"]

    monkeypatch.setattr(interrupts.jax, "process_count", lambda: 2)
    monkeypatch.setattr(interrupts.time, "monotonic", lambda: job["seconds"])
    service = interrupts.multihost_utils
    monkeypatch.setattr(service, "sync_global_devices", lambda name: None)
    monkeypatch.setattr(service, "process_allgather", lambda told: np.array([told, job["others"]]))
    monkeypatch.setattr(service, "reached_preemption_sync_point", reached)
    return job


def _work(job, steps, seconds):
    said = []
    with interrupts.apart("left", say=said.append) as stop:
        for _ in range(steps):
            job["seconds"] += seconds
            stop()
    return said


def test_no_count_is_left_out_however_long_a_step_takes(job):
    job["point"] = 27
    with pytest.raises(SystemExit) as left:
        _work(job, 100, 1.7)
    assert left.value.code == 42
    assert job["asked"] == list(range(1, int(4 * 1.7 * 4) + 1))  # at the fourth step of 1.7 s


def test_who_has_finished_leaves_with_who_was_told(job):
    assert _work(job, 3, 0.1) == []
    job["others"] = True
    with pytest.raises(SystemExit) as left:
        _work(job, 3, 0.1)
    assert left.value.code == 42


def test_what_is_agreed_on_a_stages_last_step_ends_the_next_one(job, capsys):
    """The service says so at that count alone, where the loop has nothing left to interrupt."""
    job["point"], interrupt = 3, interrupts.Interrupt()
    assert [interrupt.asked() for _ in range(3)] == [False, False, True]
    with pytest.raises(SystemExit) as left:
        interrupt.leave_if_asked("vae")
    assert left.value.code == 42 and "vae: interrupted before its first step" in capsys.readouterr().out
    assert interrupt.asked_apart(10)


def test_one_process_told_alone_waits_for_the_others(job):
    interrupt = interrupts.Interrupt()
    interrupt.tell(2, None)
    job["point"] = 2
    assert [interrupt.asked() for _ in range(2)] == [False, True]
