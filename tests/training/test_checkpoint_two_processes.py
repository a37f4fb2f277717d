"""Two processes find damage together: both step back to the same checkpoint, one of them says so."""

import importlib.util
import os
import pathlib

import pytest

from nuwaxl_jax.training import checkpoint


@pytest.fixture
def job():
    path = pathlib.Path(__file__).with_name("test_several_processes.py")
    spec = importlib.util.spec_from_file_location("several_processes", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module._job


@pytest.mark.slow
def test_two_processes_step_back_together(job, tmp_path):
    first = job(tmp_path, 2, 10)
    assert [status for status, _ in first] == [0, 0], first
    directory = pathlib.Path(checkpoint.stage_directory(tmp_path, "linear"))
    assert sorted(os.listdir(directory)) == ["10", "5"]
    files = sorted(p for p in (directory / "10" / "state").rglob("*") if p.is_file())
    assert any("ocdbt.process_1" in str(path) for path in files)
    path = files[len(files) // 2]
    path.write_bytes(path.read_bytes()[:-1])
    second = job(tmp_path, 2, 15)
    assert [status for status, _ in second] == [0, 0], second
    assert "back to step 5, 5 steps are trained again" in second[0][1]
    assert "DAMAGED" not in second[1][1]
    assert all("finished 15" in output for _, output in second)
    assert sorted(os.listdir(directory)) == ["10", "10.damaged", "15", "5"]
