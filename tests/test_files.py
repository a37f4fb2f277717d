"""Records that grow row by row."""

import pytest

from nuwaxl_jax import files

_RECORD = {"clips": 8, "rows": {"new": 2, "both": 3}}


@pytest.mark.parametrize(
    "before, rows",
    [
        (None, {"new": 2, "both": 3}),
        ({"clips": 8, "rows": {"old": 1, "both": 1}}, {"old": 1, "new": 2, "both": 3}),
        ({"clips": 9, "rows": {"old": 1}}, {"new": 2, "both": 3}),  # measured otherwise
        ({"rows": {"old": 1}}, {"new": 2, "both": 3}),
        ({"clips": 8}, {"new": 2, "both": 3}),
        ([1], {"new": 2, "both": 3}),
    ],
)
def test_rows_measured_alike_stay(tmp_path, before, rows):
    if before is not None:
        files.write_json(tmp_path / "rows.json", before)
    assert files.joined(tmp_path / "rows.json", _RECORD, "rows") == {"clips": 8, "rows": rows}
