"""The flags of every generation: well-formed without libtpu, taken by its compiler with it."""

import importlib.util
import pathlib
import re

import pytest

from experiments.launch import check_flags
from nuwaxl_jax.cost import topologies

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


def test_every_generation_has_its_file():
    files = {path.stem for path in check_flags.FOLDER.glob("*.args")}
    assert files == set(topologies.CHIPS) == set(check_flags.SLICES)


@pytest.mark.parametrize("generation", sorted(check_flags.SLICES))
def test_lines_are_flags_with_their_reason(generation):
    flags = check_flags.flags_of(generation)
    assert flags and len(set(flags)) == len(flags)
    assert all(re.fullmatch(r"--xla_[a-z0-9_]+=(true|false|[0-9]+)", flag) for flag in flags)
    text = pathlib.Path(check_flags.FOLDER / f"{generation}.args").read_text()
    assert "Nothing has been timed on a TPU." in text
    assert text.startswith("#") and max(map(len, text.splitlines())) <= 120


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("generation", sorted(check_flags.SLICES))
def test_the_compiler_takes_them(generation):
    assert check_flags.compiled(check_flags.SLICES[generation], check_flags.flags_of(generation))


@pytest.mark.slow
@needs_libtpu
def test_a_wrong_flag_is_refused():
    with pytest.raises(ValueError, match="xla_tpu_bogus"):
        check_flags.compiled("v5e:2x2", ["--xla_tpu_bogus=true"])


@pytest.mark.slow
@needs_libtpu
def test_on_v5e_the_flags_keep_what_is_on_and_without_them_it_would_be_lost():
    """What v5e.args says of its flags."""
    plain = check_flags.compiled("v5e:2x2", [])
    flags = check_flags.flags_of("v5e")
    assert check_flags.compiled("v5e:2x2", flags) == plain
    for flag in flags:
        assert check_flags.compiled("v5e:2x2", [flag.replace("=true", "=false")]) != plain


@pytest.mark.slow
@needs_libtpu
def test_on_v3_the_flag_changes_the_program():
    assert check_flags.compiled("v3:2x2", check_flags.flags_of("v3")) != check_flags.compiled("v3:2x2", [])
