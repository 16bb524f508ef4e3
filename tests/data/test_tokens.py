"""Files of token ids: .npy, raw .bin with its JSON, llm.c's .bin."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import DataError
from data.config import DataConfig
from data.source import open_source

IDS = (np.arange(600) * 7 % 11).astype(np.uint16)


def opened(path: str, **config: Any):
    return open_source(DataConfig(**{"kind": "tokens", "path": path, "context": 8} | config))


def refused(path: str, **config: Any) -> str:
    with pytest.raises(DataError) as error:
        opened(path, **config)
    assert "\n" not in str(error.value) and str(error.value).startswith(f"data.path: {path!r}")
    return str(error.value)


def token_file(folder: Path, suffix: str, ids: np.ndarray = IDS, **header) -> str:
    path = folder / f"ids{suffix}"
    if suffix == ".npy":
        np.save(path, ids)
    else:
        path.write_bytes(ids.tobytes())
        header = {"dtype": str(ids.dtype), "vocab_size": 11} | header
        path.with_suffix(".json").write_text(json.dumps(header), encoding="utf-8")
    return str(path)


def llm_c(path: Path, ids: np.ndarray, magic: int = 20240520, version: int = 1, count: int | None = None) -> str:
    """A file as dev/data/data_common.py of llm.c writes it."""
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(ids) if count is None else count
    path.write_bytes(header.tobytes() + ids.tobytes())
    return str(path)


@pytest.mark.parametrize("suffix", [".npy", ".bin", "llm.c"])
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize("placement", ["device", "host"])
def test_token_files(tmp_path, suffix, dtype, placement):
    ids = IDS.astype(dtype)
    magic = {np.uint16: (20240520, 1), np.uint32: (20240801, 7)}[dtype]
    path = llm_c(tmp_path / "a.bin", ids, *magic) if suffix == "llm.c" else token_file(tmp_path, suffix, ids)
    data = opened(path, placement=placement, val_fraction=0.25)
    assert (data.form.vocab_size, data.form.outputs, data.form.context, data.tokenizer) == (11, 11, 8, None)
    batches = data.train_batches(4, 0, 0, 3)
    if placement == "device":
        assert data.resident is not None
        np.testing.assert_array_equal(np.concatenate(data.resident), IDS)
        assert len(data.resident[1]) == 150 and batches.shape == (3, 4)
    else:
        assert data.resident is None and batches.shape == (3, 4, 9)
        np.testing.assert_array_equal(np.diff(batches.astype(int)) % 11, 7)
    assert data.heldout_batches(4, None)[1].sum() == 149 // 8


@pytest.mark.parametrize("placement", ["device", "host"])
def test_ids_in_the_other_order_of_bytes(tmp_path, placement):
    """No device takes them as they are."""
    (tmp_path / "other").mkdir()
    paths = token_file(tmp_path / "other", ".npy", IDS.astype(">u2")), token_file(tmp_path, ".npy")
    other, usual = (opened(path, placement=placement) for path in paths)
    pairs = [tuple(data.train_batches(4, 0, 0, 3) for data in (other, usual))]
    pairs.append(tuple(data.heldout_batches(4, 2)[0] for data in (other, usual)))
    for a, b in pairs:
        np.testing.assert_array_equal(a, b)
        assert a.dtype.isnative
    if placement == "device":
        assert other.resident is not None and other.resident[0].dtype.isnative
        np.testing.assert_array_equal(np.concatenate(other.resident), IDS)


@pytest.mark.parametrize(
    ("suffix", "ids", "header", "message"),
    [
        (".npy", np.array([[1, 2]]), {}, "expected whole numbers along one axis, got int64 [1, 2]"),
        (".npy", np.array([0.5]), {}, "expected whole numbers along one axis, got float64 [1]"),
        (".npy", np.array([], np.uint8), {}, "is empty"),
        (".npy", np.array([1] * 200 + [-3]), {}, "has a negative id, -3"),
        (".npy", np.array([1] * 20), {}, "is too short"),
        (".bin", IDS, {"vocab_size": 10}, "has the id 10, but its header says vocab_size 10"),
        (".bin", IDS, {"dtype": "float32"}, "got dtype 'float32', vocab_size 11"),
        (".bin", IDS, {"vocab_size": "11"}, "got dtype 'uint16', vocab_size '11'"),
        (".bin", np.arange(3, dtype=np.uint8), {"dtype": "uint16"}, "has 3 bytes, expected a multiple of 2 (uint16)"),
    ],
)
def test_bad_token_files(tmp_path, suffix, ids, header, message):
    assert message in refused(token_file(tmp_path, suffix, ids, **header))


def test_token_files_that_are_none(tmp_path):
    text = tmp_path / "x.txt"
    text.write_text("words", encoding="utf-8")
    assert refused(str(text)).endswith("is not an .npy file, nor a .bin")
    np.save(tmp_path / "objects.npy", np.array([1, None]), allow_pickle=True)
    assert refused(str(tmp_path / "objects.npy")).endswith("holds Python objects, expected whole numbers")
    assert "does not exist" in refused(str(tmp_path / "none.npy"))
    assert "is a folder, expected an .npy or .bin file of token ids" in refused(str(tmp_path))
    assert "can't be opened (" in refused("~nobody_here/ids.npy")


@pytest.mark.parametrize("count", [599, 601, 0, -1])
def test_a_file_of_llm_c_of_another_length_than_its_header_says(tmp_path, count):
    message = f"token file of llm.c with {count:,} ids of uint16 ({1024 + 2 * count:,} bytes), got 2,224 bytes"
    assert message in refused(llm_c(tmp_path / "a.bin", IDS, count=count))


def test_a_bin_without_json_says_what_to_write(tmp_path):
    """nanoGPT's train.bin has no header; its meta.pkl is never opened."""
    path = tmp_path / "train.bin"
    path.write_bytes(IDS.tobytes())
    wanted = f'expected {{"dtype": "uint16" or "uint32", "vocab_size": V}} in {str(tmp_path / "train.json")!r}'
    message = refused(str(path))
    assert wanted in message and "nanoGPT's .bin files are uint16" in message and "meta.pkl" not in message
    (tmp_path / "meta.pkl").write_bytes(b"cos\nmkdir\n(S'executed'\ntR.")
    assert "V is vocab_size of meta.pkl, which is not opened" in refused(str(path))
    assert not Path("executed").exists()
    (tmp_path / "train.json").write_text('{"dtype": "uint16", "vocab_size": 11}', encoding="utf-8")
    assert opened(str(path)).form.vocab_size == 11
