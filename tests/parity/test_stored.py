"""The files of reference tensors: what is written is read, and drawn weights are the same everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.parity.stored import FIXTURES, drawn_signs, read_arrays, write_arrays


@pytest.mark.parametrize("num_values", [1, 4, 5, 11])
def test_what_is_written_is_read(tmp_path: Path, num_values: int) -> None:
    generator = np.random.default_rng(0)
    arrays: dict[str, npt.NDArray] = {
        "float32": generator.standard_normal((num_values, 3)).astype(np.float32),
        "float64": generator.standard_normal(num_values),
        "scalar": np.array(1.5),
        "nothing": np.zeros((0, 4), np.float32),
        "int64": generator.integers(-(2**40), 2**40, num_values),
        "int8": np.arange(num_values, dtype=np.int8) - 2,
        "bool": generator.random((2, num_values)) > 0.5,
        "ternary": generator.integers(-1, 2, (num_values, 7)).astype(np.int8),
        "more of it": generator.integers(-1, 2, num_values).astype(np.int8),
    }
    write_arrays(tmp_path / "arrays.xz", arrays)
    found = read_arrays(tmp_path / "arrays.xz")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array)


def test_drawn_weights() -> None:
    """The first ones that the authors' code was given."""
    signs = drawn_signs("head.head_series.0.self_attn.in_proj_weight", (768, 256))
    assert signs.ravel()[:12].tolist() == [-1, 1, -1, -1, 0, 0, -1, -1, -1, -1, -1, 1]


def test_the_files_stay_small() -> None:
    assert sum(path.stat().st_size for path in FIXTURES.iterdir()) < 15e6
