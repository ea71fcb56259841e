"""The files in `fixtures/`: arrays of the authors' code, and listings of their checkpoints.

A file of arrays is small because like stands beside like. Compressed by xz it is: the length of the index (4 bytes),
the index as JSON (`{type: {name: shape}}`), then for each type the values of all its arrays, first the lowest byte of
every value, then the second, and so on. Of float32 values the highest byte alone can be compressed. Arrays of -1, 0 and
1 have the type "ternary": five values a byte.
"""

from __future__ import annotations

import json
import lzma
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

FIXTURES = Path(__file__).parent / "fixtures"
TERNARY = "ternary"
POWERS_OF_3 = 3 ** np.arange(5, dtype=np.uint8)


def read_text(name: str) -> str:
    """A listing, without its suffix `.xz`."""
    with lzma.open(FIXTURES / f"{name}.xz", "rt", encoding="utf-8") as file:
        return file.read()


@cache
def read_arrays(path: Path) -> dict[str, npt.NDArray]:
    """The arrays of a file by their names; read once a process, so they cannot be written to."""
    content = lzma.decompress(path.read_bytes())
    start = 4 + int.from_bytes(content[:4], "little")
    arrays = {}
    for kind, shapes in json.loads(content[4:start]).items():
        sizes = [int(np.prod(shape, dtype=np.int64)) for shape in shapes.values()]
        if kind == TERNARY:
            end = start + -(-sum(sizes) // 5)
            packed = np.frombuffer(content[start:end], np.uint8)
            values = (packed[:, None] // POWERS_OF_3 % 3).astype(np.int8).ravel()[: sum(sizes)] - 1
        else:
            end = start + sum(sizes) * np.dtype(kind).itemsize
            planes = np.frombuffer(content[start:end], np.uint8).reshape(np.dtype(kind).itemsize, -1)
            values = np.ascontiguousarray(planes.T).view(kind).ravel()
        values.flags.writeable = False
        for (name, shape), part in zip(shapes.items(), np.split(values, np.cumsum(sizes)[:-1]), strict=True):
            arrays[name] = part.reshape(shape)
        start = end
    return arrays


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray]) -> None:
    """Writes a file that `read_arrays` reads."""
    by_kind: dict[str, dict[str, npt.NDArray]] = {}
    for name, array in arrays.items():
        is_ternary = array.dtype == np.int8 and array.size > 0 and np.abs(array).max() <= 1
        kind = TERNARY if is_ternary else array.dtype.newbyteorder("<").str
        by_kind.setdefault(kind, {})[name] = array
    index = {kind: {name: array.shape for name, array in group.items()} for kind, group in by_kind.items()}
    header = json.dumps(index).encode()
    content = [len(header).to_bytes(4, "little"), header]
    for kind, group in by_kind.items():
        values = np.concatenate([array.ravel() for array in group.values()])
        if kind == TERNARY:
            digits = np.pad((values + 1).astype(np.uint8), (0, -len(values) % 5)).reshape(-1, 5)
            content.append((digits * POWERS_OF_3).sum(1, dtype=np.uint8).tobytes())
        else:
            content.append(values.astype(kind).view(np.uint8).reshape(len(values), -1).T.tobytes())
    path.write_bytes(lzma.compress(b"".join(content), preset=9 | lzma.PRESET_EXTREME))


def drawn_signs(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.int8]:
    """The -1, 0 and 1 of a weight that is drawn by its name.

    `RandomState` is the generator whose numbers NumPy never changes, on any machine (NEP 19).
    """
    generator = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
    return generator.randint(-1, 2, shape, dtype=np.int64).astype(np.int8)
