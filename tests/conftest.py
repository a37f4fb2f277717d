"""Eight virtual CPU devices, key reuse checked, for every test; the tiny preset for those that want a whole model.

After comparisons with other implementations (`-m parity`) the largest differences are printed, one line a thing.
"""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile


def _flags() -> str:
    """Most of the suite's time is compilation: no optimiser, no MLIR emitters, one LLVM module a program.

    The last two take a third off the processor time of a tiny training stage. They are flags for developers of XLA, who
    may take them away, and XLA ends the process at a flag that it does not know: so they are tried first, once a run.
    """
    if "NUWAXL_TEST_FLAGS" not in os.environ:
        flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
        tried = subprocess.run(
            [sys.executable, "-c", "import jax; jax.devices()"],
            env=dict(os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS=flags),
            capture_output=True,
        )
        os.environ["NUWAXL_TEST_FLAGS"] = flags if tried.returncode == 0 else ""
    return f"--xla_backend_optimization_level=0 {os.environ['NUWAXL_TEST_FLAGS']}"


os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flags()}"
# What one test has compiled another need not: one folder for all workers and the programs they start.
_CACHE_OWNER = "JAX_COMPILATION_CACHE_DIR" not in os.environ
if _CACHE_OWNER:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="nuwaxl_jax_tests_")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

os.environ["NUWAXL_CACHE"] = "off"  # no test remembers another's videos

import jax
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_debug_key_reuse", True)


def pytest_collection_modifyitems(config, items):
    """Files with slow tests first, or one worker would run them alone at the end (a file stays on one worker).

    Long tests are left out, unless -m or a test's name asks for them.
    """
    named = any("::" in argument for argument in config.args)
    if "long" not in config.getoption("markexpr") and not config.getoption("keyword") and not named:
        left = [item for item in items if item.get_closest_marker("long")]
        items[:] = [item for item in items if not item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=left)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_unconfigure(config):
    """The folder goes with the run that made it."""
    if _CACHE_OWNER:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def _programs_go_with_their_module():
    """A worker that kept every compiled program would hold several GiB at the end."""
    yield
    jax.clear_caches()


# Networks of one resolution, for tests that are not of the networks: a program compiles in a third of the time.
ONE_LEVEL = {"vae.channel_mults": (1,), "unet.channel_mults": (1,), "unet.prompt_levels": (True,)}


def load_presets():
    """The module configs/toons.py, and ONE_LEVEL in it."""
    path = pathlib.Path(__file__).resolve().parents[1] / "configs" / "toons.py"
    spec = importlib.util.spec_from_file_location("toons_presets", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.ONE_LEVEL = ONE_LEVEL
    return module


@pytest.fixture(scope="session")
def toons_presets():
    return load_presets()


_FIGURE = "equals the original: "


@pytest.fixture
def equals_original(record_property):
    """check(what, made, wanted, tolerance): arrays differ by at most so much of the largest; kept for the summary."""

    def check(what, made, wanted, tolerance=1e-4):
        made, wanted = np.asarray(made, np.float64), np.asarray(wanted, np.float64)
        assert made.shape == wanted.shape and np.ptp(wanted) > 1e-2
        difference = float(np.abs(made - wanted).max() / np.abs(wanted).max())
        record_property(f"{_FIGURE}{what}, within {tolerance:g}", difference)
        assert difference <= tolerance, what

    return check


def pytest_terminal_summary(terminalreporter):
    figures = {}
    for report in terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", []):
        for name, value in report.user_properties:
            if name.startswith(_FIGURE) and report.when == "call":
                figures.setdefault(name.removeprefix(_FIGURE), []).append(value)
    if figures:
        terminalreporter.section("differences from the originals, of the largest value, at most")
    for name, values in sorted(figures.items()):
        terminalreporter.line(f"{max(values):.1e}  {name}  ({len(values)} comparisons)")
