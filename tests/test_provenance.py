"""The code that made a result is named by version and commit, and nothing breaks where there is no git."""

import subprocess

import pytest

from nuwaxl_jax import provenance


@pytest.fixture
def code(tmp_path, monkeypatch):
    """`provenance.code` in a folder, unremembered."""
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    return provenance.code.__wrapped__


def _git(folder, *words):
    of = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", "-C", str(folder), *of, *words], check=True, capture_output=True, text=True).stdout


def test_a_checkout_names_its_commit_and_whether_its_code_differs(code, tmp_path):
    _git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("a = 1\n")
    _git(tmp_path, "add", "a.py")
    _git(tmp_path, "commit", "-q", "-m", "first")
    (tmp_path / "results.json").write_text("{}")  # no code
    found = code()
    assert found["commit"] == _git(tmp_path, "rev-parse", "HEAD").strip() and "changed" not in found
    (tmp_path / "a.py").write_text("a = 2\n")
    assert code() == found | {"changed": True}


def test_without_git_or_checkout_the_version_is_left(code, tmp_path, monkeypatch):
    alone = code()
    assert list(alone) == ["version"]
    (tmp_path / ".git").mkdir()  # no repository
    assert code() == alone
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    assert code() == alone
