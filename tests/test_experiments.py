"""The scripts in experiments/ run the code that they lie beside, whatever copy of the package is installed."""

import ast
import pathlib
import types

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDER = ROOT / "experiments"
SCRIPTS = sorted(path for path in FOLDER.rglob("*.py") if '__name__ == "__main__"' in path.read_text())
SCRIPTS.remove(FOLDER / "launch" / "parse_only.py")  # of the checkout that is launched: check_config.py says which


def _imported(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) else []


def _path_at_the_package(path):
    """sys.path when a script, or a file beside it that it imports, first imports the package; None if none does."""
    names = {"__file__": str(path), "sys": types.SimpleNamespace(path=["installed"]), "pathlib": pathlib}
    for node in ast.parse(path.read_text()).body:
        for name in _imported(node):
            if name.split(".")[0] == "nuwaxl_jax":
                return names["sys"].path
            for place in (path.parent, FOLDER):
                beside = place / f"{name}.py"
                if beside.exists() and (made := _path_at_the_package(beside)):
                    return made[:-1] + names["sys"].path
        text = ast.unparse(node)
        if text.startswith(("ROOT =", "HERE =")) or (
            "sys.path" in text and isinstance(node, (ast.Expr, ast.Assign, ast.If))
        ):
            exec(text, names)
    return None


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_a_script_finds_the_package_beside_it_before_an_installed_one(path):
    made = _path_at_the_package(path)
    assert made is None or str(ROOT) in made[: made.index("installed")]
