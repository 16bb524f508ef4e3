"""Files of token ids: .npy, raw .bin with its JSON, llm.c's .bin; damaged ones, and ones made to do harm."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sources import opened, refused, write

IDS = (np.arange(600) * 7 % 11).astype(np.uint16)


def tokens(path: str, **config: Any):
    return opened(**{"kind": "tokens", "path": path, "context": 8} | config)


def refused_file(path: str, **config: Any) -> str:
    message = refused(**{"kind": "tokens", "path": path, "context": 8} | config)
    assert message.startswith(f"data.path: {path!r}")
    return message.removeprefix(f"data.path: {path!r} ")


def token_file(suffix: str, ids: np.ndarray = IDS, **header) -> str:
    if suffix == ".npy":
        np.save("ids.npy", ids, allow_pickle=True)
    else:
        write("ids.json", json.dumps({"dtype": str(ids.dtype), "vocab_size": 11} | header))
        write("ids.bin", ids.tobytes())
    return f"ids{suffix}"


def llm_c(ids: np.ndarray = IDS, magic: int = 20240520, version: int = 1, count: int | None = None) -> str:
    """A file as dev/data/data_common.py of llm.c writes it."""
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(ids) if count is None else count
    return write("llm.bin", header.tobytes() + ids.tobytes())


@pytest.mark.parametrize("suffix", [".npy", ".bin", "llm.c"])
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize("placement", ["device", "host"])
def test_token_files(suffix, dtype, placement):
    ids = IDS.astype(dtype)
    magic = {np.uint16: (20240520, 1), np.uint32: (20240801, 7)}[dtype]
    path = llm_c(ids, *magic) if suffix == "llm.c" else token_file(suffix, ids)
    data = tokens(path, placement=placement, val_fraction=0.25)
    assert (data.spec.vocab_size, data.spec.outputs, data.spec.context, data.tokenizer) == (11, 11, 8, None)
    batches = data.train_batches(4, 0, 0, 3)
    if placement == "device":
        np.testing.assert_array_equal(np.concatenate(data.resident), IDS)
        assert len(data.resident[1]) == 150 and batches.shape == (3, 4)
    else:
        assert data.resident is None and batches.shape == (3, 4, 9)
        np.testing.assert_array_equal(np.diff(batches.astype(int)) % 11, 7)
    assert data.heldout_batches(4, None)[1].sum() == 149 // 8


@pytest.mark.parametrize("placement", ["device", "host"])
def test_ids_in_the_other_order_of_bytes(placement):
    """No device takes them as they are."""
    usual = tokens(token_file(".npy"), placement=placement)
    np.save("other.npy", IDS.astype(">u2"))
    other = tokens("other.npy", placement=placement)
    for read in (lambda data: data.train_batches(4, 0, 0, 3), lambda data: data.heldout_batches(4, 2)[0]):
        np.testing.assert_array_equal(read(other), read(usual))
        assert read(other).dtype.isnative
    if placement == "device":
        assert other.resident[0].dtype.isnative
        np.testing.assert_array_equal(np.concatenate(other.resident), IDS)


@pytest.mark.parametrize(
    ("suffix", "ids", "header"),
    [
        (".npy", np.array([[1, 2]]), {}),
        (".npy", np.array([0.5]), {}),
        (".npy", np.array([1, None]), {}),
        (".npy", np.array([], np.uint8), {}),
        (".npy", np.array([1] * 200 + [-3]), {}),
        (".npy", np.array([1] * 20), {}),
        (".npy", np.array([2**31] * 200), {}),
        (".bin", IDS, {"vocab_size": 10}),
        (".bin", IDS, {"vocab_size": 2**31 + 1}),
        (".bin", IDS, {"dtype": "float32"}),
        (".bin", IDS, {"vocab_size": "11"}),
        (".bin", np.arange(3, dtype=np.uint8), {"dtype": "uint16"}),
    ],
    ids=lambda x: " ".join(map(str, x.items())) if isinstance(x, dict) else None,
)
def test_bad_token_files(suffix, ids, header, wording):
    wording(refused_file(token_file(suffix, ids, **header)))


def test_token_files_that_are_none(tmp_path, wording):
    for path in (write("x.txt", "words"), "none.npy", str(tmp_path), "~no_such_user/ids.npy"):
        wording(refused_file(path))
    write("a.bin", "12345678")
    os.mkfifo("a.json")  # is not waited for
    wording(refused_file("a.bin"))


@pytest.mark.parametrize("count", [599, 601, 0, -1])
def test_a_file_of_llm_c_of_another_length_than_its_header_says(count, wording):
    message = refused_file(llm_c(count=count))
    assert f" {count:,} " in message and f"({1024 + 2 * count:,} bytes)" in message
    wording(message)


def test_a_bin_without_json_says_what_to_write(wording):
    """nanoGPT's train.bin has no header; its meta.pkl is never opened."""
    write("train.bin", IDS.tobytes())
    message = refused_file("train.bin")
    assert "'train.json'" in message and "meta.pkl" not in message
    wording(message)
    write("meta.pkl", b"cos\nmkdir\n(S'executed'\ntR.")
    wording(refused_file("train.bin"))
    assert not Path("executed").exists()
    write("train.json", '{"dtype": "uint16", "vocab_size": 11}')
    assert tokens("train.bin").spec.vocab_size == 11


def test_a_sparse_file_of_terabytes_is_refused_at_once(wording):
    token_file(".bin", IDS.astype(np.uint8))
    os.truncate("ids.bin", 2**42)
    wording(refused_file("ids.bin"))


@pytest.mark.parametrize("kind", ["cut", "replaced", "removed"])
def test_a_file_that_changes_under_its_map_is_not_read_on(kind, wording):
    """To read what was cut off would end the process; a new file is no harm to a map of the old one."""
    data = tokens(token_file(".npy"), placement="host")
    before = data.train_batches(4, 0, 0, 3)
    if kind == "cut":
        os.truncate("ids.npy", 200)
        for read in (lambda: data.train_batches(4, 0, 0, 3), lambda: data.heldout_batches(4, 1)):
            with wording.raises(ValueError, "data.path"):
                read()
    else:
        Path("ids.npy").unlink()
        if kind == "replaced":
            np.save("ids.npy", np.arange(9))
        np.testing.assert_array_equal(data.train_batches(4, 0, 0, 3), before)


# Files that were made to do harm


class Marker:
    """Makes a file when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("executed").absolute(),)


def npy(header: str) -> bytes:
    text = header.encode("latin-1") + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize("name", ["a.npy", "a.bin", "a.npz", "a.txt"])
@pytest.mark.parametrize("objects", [False, True])
def test_a_pickle_in_the_place_of_data_is_never_loaded(name, objects):
    header = npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }")
    evil = pickle.dumps(Marker())
    write(name, header + pickle.dumps(np.array([Marker()], dtype=object)) if objects else evil)
    write("a.json", '{"dtype": "uint8", "vocab_size": 256}')
    try:
        opened(path=name, context=2, kind="text" if name == "a.txt" else "tokens").train_batches(1, 0, 0, 1)
    except ValueError as error:
        assert "\n" not in str(error)
    assert not Path("executed").exists()
    pickle.loads(evil)
    assert Path("executed").exists()  # or this test would hold nothing


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
def test_a_crafted_header_is_refused(header):
    refused_file(write("a.npy", npy(header) + bytes(64)), context=2)
