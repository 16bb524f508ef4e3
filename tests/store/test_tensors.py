"""Checkpoint files: arrays of every dtype, and damage that is refused."""

import hashlib
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from train.store import tensors
from train.store.tensors import Damaged


@pytest.mark.parametrize("dtype", [*tensors.CODES])
def test_every_dtype_comes_back_bit_for_bit(tmp_path, dtype):
    rng = np.random.default_rng(0)
    values = np.frombuffer(rng.bytes(240), np.dtype(dtype) if dtype != "bool" else "uint8")
    values = values.astype(bool) if dtype == "bool" else values
    arrays = {
        "a": values,
        "scalar": values[3],
        "empty": values[:0].reshape(0, 4),
        "transposed": values[:20].reshape(4, 5).T,
    }
    with open(tmp_path / "x", "wb") as file:
        tensors.write(file, {key: np.asarray(value) for key, value in arrays.items()}, {"k": "ä\n"})
    metadata, restored = tensors.read(tmp_path / "x")
    assert metadata == {"k": "ä\n"} and restored.keys() == arrays.keys()
    for key, value in arrays.items():
        assert restored[key].dtype == dtype and restored[key].shape == np.shape(value)
        assert restored[key].tobytes() == np.asarray(value).tobytes()


def test_every_flipped_bit_and_every_cut_is_refused(tmp_path):
    """All of them, of a small file."""
    path = tmp_path / "x"
    with open(path, "wb") as file:
        tensors.write(file, {"w": np.arange(3, dtype=np.int32), "b": np.asarray(jnp.ones(2, jnp.bfloat16))}, {"k": "v"})
    content = path.read_bytes()
    assert tensors.read_metadata(path) == {"k": "v"} and 150 < len(content) < 400
    damages = [content[:end] for end in range(len(content))] + [content + b"\0", content * 2]
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        damages.append(bytes(flipped))
    for damage in damages:
        path.write_bytes(damage)
        for reader in (tensors.read, tensors.read_metadata):
            with pytest.raises(Damaged):
                reader(path)


def handmade(path: Path, header: bytes) -> Path:
    """A file with this header, 16 bytes of arrays, and the right digest."""
    content = len(header).to_bytes(8, "little") + header + bytes(16)
    path.write_bytes(content + hashlib.sha256(content).digest())
    return path


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 12]},
        {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]},
        {"dtype": "O", "shape": [1], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [1]},
        7,
    ],
    ids=str,
)
def test_arrays_that_do_not_fit_are_refused_even_if_the_digest_is_right(tmp_path, entry, wording):
    with wording.raises(Damaged):
        tensors.read(handmade(tmp_path / "x", json.dumps({"a": entry}).encode()))
