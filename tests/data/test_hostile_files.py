"""Files that were made to do harm: one line from whoever reads them, and nothing in them is run."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import DataError
from data.config import DataConfig
from data.source import open_source


class Marker:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def npy(header: str) -> bytes:
    text = header.encode("latin-1") + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def read(path: Path, **keys: Any) -> str:
    """What is said of a file of data; empty when it can be used."""
    try:
        open_source(DataConfig(path=str(path), context=2, **keys)).train_batches(1, 0, 0, 1)
    except DataError as error:
        assert "\n" not in str(error)
        return str(error)
    return ""


def test_the_marker_works(tmp_path):
    pickle.loads(pickle.dumps(Marker(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["a.npy", "a.bin", "a.npz", "a.txt"])
@pytest.mark.parametrize("content", ["bare", "an array of objects"])
def test_a_pickle_in_the_place_of_data_is_never_loaded(tmp_path, name, content):
    executed = tmp_path / "executed"
    evil = pickle.dumps(Marker(executed))
    if content != "bare":
        header = "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
        evil = npy(header) + pickle.dumps(np.array([Marker(executed)], dtype=object))
    (tmp_path / name).write_bytes(evil)
    (tmp_path / "a.json").write_text('{"dtype": "uint8", "vocab_size": 256}', encoding="utf-8")
    read(tmp_path / name, **({} if name == "a.txt" else {"kind": "tokens"}))
    assert not executed.exists()


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<u2', 'fortran_order': False, 'shape': (1000000000000,), }",
        "{'descr': '<u2', 'fortran_order': False, 'shape': (-5,), }",
        "{'descr': '<u2', 'fortran_order': True, 'shape': (2, 3), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (8,), }",
        "{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<u2'}",
        "__import__('os').abort()",
        "[" * 5000,
    ],
    ids=lambda header: header[:70],
)
def test_a_crafted_header_of_token_ids_is_refused(tmp_path, header):
    (tmp_path / "a.npy").write_bytes(npy(header) + bytes(64))
    assert read(tmp_path / "a.npy", kind="tokens").startswith("data.path: ")
