"""SIGKILL at random moments of saving: every time a fresh process restores what was last said to be complete.

NUWAXL_KILLS sets how often (30); experiments/faults holds the record of 100.
"""

import importlib.util
import os
import pathlib

import pytest

PATH = pathlib.Path(__file__).resolve().parents[2] / "experiments" / "faults" / "kill_saving.py"


@pytest.mark.slow
def test_every_kill_is_survived(tmp_path):
    spec = importlib.util.spec_from_file_location("kill_saving", PATH)
    faults = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(faults)
    times = int(os.environ.get("NUWAXL_KILLS", "30"))
    rows = faults.kill_many(times, str(tmp_path), seed=1)
    assert len(rows) == times and [row for row in rows if not row["good"]] == []
    assert rows[-1]["restored"] > times / 3  # and work was done
    moments = faults.table(rows)
    assert "writing arrays" in moments and sum(entry["steps_lost"] for entry in moments.values()) == 0
