"""Eight virtual CPU devices, key reuse checked, for every test; the tiny preset for those that want a whole model."""

import importlib.util
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the suite's time is compilation, and tiny programs are fast without the backend's optimiser.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_debug_key_reuse", True)


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
