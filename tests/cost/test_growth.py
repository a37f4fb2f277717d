"""A program that takes more memory of a chip, or moves more between chips, than the stored one is found, in words.

The programs themselves are compiled again where the TPU compiler is installed (`pip install '.[test,tpu]'`).
"""

import copy
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import shlex
import subprocess
import sys

import pytest

from nuwaxl_jax.cost import growth

ROOT = pathlib.Path(__file__).resolve().parents[2]
RUN = ROOT / "experiments" / "pod_cost" / "run.py"
RENEW = "python renew.py --only=it"
# Rows compiled again here: with collectives and without. The others take experiments/pod_cost/run.py --check.
AGAIN = ("tiny/v5e-16/train/vae", "tiny/v5e-16/sample/level_2")


@pytest.fixture
def stored():
    return dict(
        memory=dict(total=1e9, arguments=4e8, temporaries=6e8, code=1e5),
        collectives={"all-gather": {"count": 8.0, "bytes": 2e6}},
        flops=1e12,
    )


def _changed(row, path, value):
    row = copy.deepcopy(row)
    *way, last = path
    node = row
    for name in way:
        node = node.setdefault(name, {})
    node[last] = value
    return row


def test_the_same_and_less_are_no_growth(stored):
    assert growth.growths("it", stored, stored, RENEW) == []
    less = _changed(stored, ("memory", "temporaries"), 1e8)
    less["collectives"] = {}
    assert growth.growths("it", stored, less, RENEW) == []
    assert growth.growths("it", stored, _changed(stored, ("memory", "total"), 1.05e9), RENEW) == []


@pytest.mark.parametrize(
    "path,name",
    [
        (("memory", "total"), "memory, total"),
        (("memory", "arguments"), "memory, arguments"),
        (("memory", "temporaries"), "memory, temporaries"),
        (("collectives", "all-gather", "bytes"), "all-gather, bytes"),
    ],
)
def test_what_is_more_by_over_five_percent_is_named_with_both_sizes_and_the_command(stored, path, name):
    node = stored
    for part in path:
        node = node[part]
    [line] = growth.growths("train/it", stored, _changed(stored, path, 1.051 * node), RENEW)
    assert line.startswith(f"train/it: {name}: ") and "5.1 % more" in line and line.endswith(RENEW)
    assert growth.size(node) in line and growth.size(1.051 * node) in line


def test_a_new_kind_of_collective_is_a_growth_however_small(stored):
    more = _changed(stored, ("collectives", "all-to-all"), {"count": 1.0, "bytes": 4.0})
    [line] = growth.growths("it", stored, more, RENEW)
    assert "all-to-all" in line and "4 B a device, where there was none" in line


def test_of_several_growths_none_is_left_out(stored):
    more = _changed(_changed(stored, ("memory", "total"), 2e9), ("collectives", "all-gather", "bytes"), 4e6)
    assert len(growth.growths("it", stored, more, RENEW)) == 2


def test_a_program_without_a_stored_row_says_which_command_stores_it(stored):
    [line] = growth.growths("it", None, stored, RENEW)
    assert "nothing is stored" in line and RENEW in line


def test_a_program_that_no_longer_compiles_is_a_growth(stored):
    refused = dict(memory=dict(total=2e10, arguments=4e8), refusal="RESOURCE_EXHAUSTED")
    [line] = growth.growths("it", stored, refused, RENEW)
    assert "refuses" in line and "18.6 GiB" in line
    [line] = growth.growths("it", stored, dict(error="train.denoiser.batch_size is 8"), RENEW)
    assert "train.denoiser.batch_size is 8" in line
    assert growth.growths("it", refused, stored, RENEW) == []  # it compiles now, in less


def test_other_compilers_are_told_apart_by_all_but_the_last_number():
    here = dict(jax="0.10.2", jaxlib="0.10.2", libtpu="0.0.42.1")
    assert growth.other_versions(here, here | dict(libtpu="0.0.42.3")) == ""
    assert growth.other_versions(here, here | dict(libtpu="0.0.50")) == "libtpu 0.0.50, stored with 0.0.42.1"
    assert growth.other_versions({}, here).startswith("jax 0.10.2, stored with none")


def _experiment():
    spec = importlib.util.spec_from_file_location("pod_cost", RUN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_check_reads_the_stored_rows(monkeypatch, tmp_path, stored, capsys):
    module = _experiment()
    label, row = next((label, row) for label, row in module.rows().items() if label in AGAIN)
    shown = dict(effort=-1.0, overrides=list(row[3]), versions=dict(jax="0.10.2"))
    module.RESULTS = tmp_path / "results.json"
    module.RESULTS.write_text(json.dumps({label: shown | stored}))
    made = shown | _changed(stored, ("memory", "total"), 1.2e9)
    monkeypatch.setattr(module, "_compile", lambda group, effort: {label: made for label in group})
    [line] = module.check({label: row}, -1.0)
    assert line.startswith(f"{label}: memory, total") and "--again" in line
    [line] = module.check({"other": row}, -1.0)
    assert "nothing is stored" in line
    monkeypatch.setattr(sys, "argv", ["run.py", "--check", f"--only={label}"])
    with pytest.raises(SystemExit) as end:
        module.main()
    assert end.value.code == 1 and "memory, total" in capsys.readouterr().out
    assert json.loads(module.RESULTS.read_text()) == {label: shown | stored}  # a check stores nothing
    made["versions"] = dict(jax="0.12.0")
    [line] = module.check({label: row}, -1.0)
    assert "not comparable, jax 0.12.0, stored with 0.10.2" in line


@pytest.mark.slow
@pytest.mark.tpu
def test_no_program_has_grown_since_it_was_stored():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("no TPU compiler; pip install '.[test,tpu]'")
    only = f"--only={shlex.quote(';'.join(AGAIN))}"
    stored = json.loads(RUN.with_name("results.json").read_text())
    here = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "libtpu")}
    for label in AGAIN:
        assert label in stored, f"{label} is not stored; python experiments/pod_cost/run.py {only}"
        if differ := growth.other_versions(stored[label]["versions"], here):
            pytest.skip(f"{differ}; python experiments/pod_cost/run.py --again {only}")
    # The flags that make this suite's own programs compile sooner are none of a run's.
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")}
    command = [sys.executable, str(RUN), "--check", f"--only={';'.join(AGAIN)}"]
    env["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-2000:]}"
    assert done.stdout.count("not grown") == len(AGAIN)
