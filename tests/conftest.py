"""Eight virtual CPU devices, key reuse checked, for every test; the tiny preset for those that want a whole model."""

import importlib.util
import os
import pathlib
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the suite's time is compilation, and tiny programs are fast without the backend's optimiser.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
# What one test has compiled another need not: one folder for all workers and the programs they start.
_CACHE_OWNER = "JAX_COMPILATION_CACHE_DIR" not in os.environ
if _CACHE_OWNER:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="nuwaxl_jax_tests_")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_debug_key_reuse", True)


def pytest_unconfigure(config):
    """The folder goes with the run that made it."""
    if _CACHE_OWNER:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def _programs_go_with_their_module():
    """A worker that kept every compiled program would hold several GiB at the end."""
    yield
    jax.clear_caches()


def load_presets():
    """The module configs/toons.py."""
    path = pathlib.Path(__file__).resolve().parents[1] / "configs" / "toons.py"
    spec = importlib.util.spec_from_file_location("toons_presets", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def toons_presets():
    return load_presets()
