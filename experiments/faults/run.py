"""Every fault that the tests make, as a table: kind, times tried, times survived, what was lost.

    pip install '.[test]'
    python experiments/faults/run.py [--only=PART] [--table]

Each row is some tests, run by pytest; a test that passes has survived the faults it makes (how many is noted beside
its name), and what may be lost is what it asserts. Kills while saving are counted one by one by kill_saving.py, whose
results are taken from its file. Rows are kept in table.json; --only=PART makes those with PART in their kind anew.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
from xml.etree import ElementTree

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # the code here, and no copy that is installed
from nuwaxl_jax import files

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TABLE = HERE / "table.json"
_MARKS = ("<!-- table -->", "<!-- end of table -->")  # in README.md, what lies between is written by this program


@dataclasses.dataclass(frozen=True)
class Row:
    """Faults of one kind.

    Attributes:
      kind: of the table.
      tests: of pytest.
      lost: what the tests allow to be lost.
      times: part of a test's name -> faults it makes; others make one.
    """

    kind: str
    tests: tuple[str, ...]
    lost: str
    times: dict[str, int] = dataclasses.field(default_factory=dict)


_DAMAGE = "tests/training/test_checkpoint_damage.py"
_TOLD = "tests/end_to_end/test_preemption.py::test_told_to_stop_in_each_phase_goes_on_to_the_same_end"
ROWS = (
    Row("SIGTERM while compiling, in a step, saving; 1 and 2 processes", (_TOLD + "[train",), "no step", {"train": 3}),
    Row("SIGTERM while keeping latents; 1 and 2 processes", (_TOLD + "[cache",), "the batch in work"),
    Row("SIGTERM while sampling, decoding; 1 and 2 processes", (_TOLD + "[sample",), "no device call", {"sample": 2}),
    Row("SIGTERM while evaluating; 1 and 2 processes", (_TOLD + "[eval",), "the story in work"),
    Row(
        "SIGTERM of one of four processes, training",
        ("tests/training/test_several_processes.py",),
        "no step",
    ),
    Row(
        "a file of a checkpoint flipped, cut, deleted",
        (f"{_DAMAGE}::test_damage_of_each_class_is_stepped_over",),
        "back to the checkpoint before",
    ),
    Row(
        "damage seen by two processes",
        ("tests/training/test_checkpoint_two_processes.py",),
        "back to the checkpoint before",
    ),
    Row(
        "a save that fails (disk full, no rights)",
        (f"{_DAMAGE}::test_a_failed_save_is_reported_at_the_next_step",),
        "since the checkpoint before; said at the next step",
    ),
    Row(
        "SIGKILL while generating",
        ("tests/hierarchy/test_ledger.py::test_killed_at_random_moments",),
        "the device call in work",
        {"killed": 6},
    ),
    Row(
        "latents of a video damaged, the book cut off",
        (
            "tests/hierarchy/test_ledger.py::test_what_is_damaged_is_made_again_alone",
            "tests/hierarchy/test_ledger.py::test_a_line_of_the_book_that_was_cut_off_is_none",
        ),
        "those segments alone",
    ),
    Row(
        "SIGKILL while keeping latents",
        (
            "tests/training/test_caching.py::test_the_command_killed_at_random_moments_goes_on",
            "tests/data/test_cache_store.py::test_killed_at_ten_random_moments_it_goes_on_and_ends_as_if_undisturbed",
        ),
        "the file in work",
        {"killed": 10},
    ),
    Row(
        "SIGKILL while preparing a set",
        ("tests/data/test_prepared_faults.py::test_killed_ten_times_it_is_what_an_undisturbed_run_makes",),
        "the part in work",
        {"killed": 10},
    ),
    Row(
        "disk full or read-only while preparing, keeping latents",
        (
            "tests/data/test_prepared_faults.py::test_a_full_disk_is_one_line_and_what_is_done_is_kept",
            "tests/data/test_prepared_faults.py::test_a_folder_that_cannot_be_written_is_one_line",
            "tests/data/test_cache_store.py::test_a_full_disk_is_one_line_and_what_was_complete_stays",
            "tests/data/test_cache_store.py::test_a_folder_that_cannot_be_written_is_one_line",
        ),
        "the part in work; one line",
    ),
    Row(
        "videos broken, strange, missing",
        ("tests/data/test_faults.py", "tests/data/test_prepared_faults.py::test_videos_damaged_inside"),
        "that video, by name",
    ),
    Row(
        "a loss or gradient that is not finite",
        (
            "tests/training/test_train_loop.py::test_a_few_bad_batches_are_skipped_written_down_and_the_run_goes_on",
            "tests/training/test_train_loop.py::test_too_many_between_two_checkpoints",
        ),
        "those steps; too many end the run, status 1",
        {"few": 3},
    ),
    Row("hosts missing, of another version, strangers", ("tests/test_hosts.py",), "nothing; one line names them"),
    Row(
        "slices pre-empted, suspended, dead, nothing free (made-up cloud)",
        (
            "tests/launch/test_up.py::test_a_preemption_in_the_middle_is_mended",
            "tests/launch/test_up.py::test_a_queued_spot_slice_that_is_suspended_is_asked_for_again",
            "tests/launch/test_up.py::test_status_42_starts_again_on_the_same_slice",
            "tests/launch/test_up.py::test_a_failure_on_a_slice_that_turns_out_lost_is_no_failure",
            "tests/launch/test_up.py::test_nothing_free_after_a_preemption_is_waited_for",
            "tests/launch/test_up.py::test_a_run_that_vanished_is_lost_and_one_at_work_is_not_started_twice",
        ),
        "since the last checkpoint",
    ),
)


def _run(*chosen: str) -> list[ElementTree.Element]:
    """The test cases of pytest's arguments, run now."""
    with tempfile.TemporaryDirectory() as folder:
        report = os.path.join(folder, "report.xml")
        words = [sys.executable, "-m", "pytest", "-q", "-n2", f"--junitxml={report}"]
        subprocess.run([*words, *chosen], cwd=ROOT, check=False)
        return list(ElementTree.parse(report).iter("testcase"))


def _cases(row: Row) -> list[ElementTree.Element]:
    """The test cases of a row, run now: of whole files, and of those whose names begin as given."""
    whole = [test for test in row.tests if "::" not in test]
    named = [test.split("::") for test in row.tests if "::" in test]
    cases = _run(*whole) if whole else []
    if named:
        names = " or ".join(sorted({f"({name.replace('[', ' and ')})" for _, name in named}))
        found = _run(*sorted({path for path, _ in named}), "-k", names)
        cases += [case for case in found if any(case.get("name").startswith(name) for _, name in named)]
    return cases


def _times(row: Row, case: ElementTree.Element) -> int:
    return next((times for part, times in row.times.items() if part in case.get("name")), 1)


def measure(row: Row) -> dict[str, object]:
    """Runs a row's tests."""
    cases = [case for case in _cases(row) if case.find("skipped") is None]
    good = [case for case in cases if case.find("failure") is None and case.find("error") is None]
    tried, survived = (sum(_times(row, case) for case in some) for some in (cases, good))
    return dict(tried=tried, survived=survived, lost=row.lost)


def table(results: dict[str, dict[str, object]]) -> str:
    """Markdown."""
    saving = json.loads((HERE / "results.json").read_text())["total"]
    tried, survived, lost = (saving[name] for name in ("tried", "survived", "steps_lost"))
    lines = ["| fault | tried | survived | lost |", "|---|---|---|---|"]
    lines.append(f"| SIGKILL while saving (kill_saving.py) | {tried} | {survived} | {lost or 'no'} step |")
    for row in ROWS:
        if row.kind in results:
            made = results[row.kind]
            lines.append(f"| {row.kind} | {made['tried']} | {made['survived']} | {made['lost']} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    record = json.loads(TABLE.read_text()) if TABLE.exists() else {"rows": {}}
    for row in () if arguments.table else ROWS:
        if arguments.only in row.kind if arguments.only else row.kind not in record["rows"]:
            record["rows"][row.kind] = measure(row)
            record["machine"] = dict(cores=os.cpu_count(), python=platform.python_version())
            files.write_json(TABLE, record)
    text = table(record["rows"])
    readme = HERE / "README.md"
    before, _, rest = readme.read_text().partition(_MARKS[0])
    rest = rest.partition(_MARKS[1])[2]
    files.write_bytes(readme, f"{before}{_MARKS[0]}\n{text}\n{_MARKS[1]}{rest}".encode())
    print(text)


if __name__ == "__main__":
    main()
