"""Long sequences of token ids, of which windows are the batches; ready-made files of them: .npy, .bin, llm.c's .bin."""

import hashlib
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import DataError, reason
from .batches import INT32_END, gather, heldout_starts, window_starts
from .config import DataConfig
from .files import MappedFile, json_of, located, mapped_npy
from .floors import counts, unigram
from .source import DataSpec
from .tokenizer import Tokenizer

DEVICE_BYTES = 256 * 2**20  # of tokens, up to which placement auto means device
_CHUNK = 2**22
_DTYPES = ("uint8", "uint16", "uint32")
_MOST_HEADER = 2**16  # bytes of the JSON of a .bin
_LLMC_HEADER = 256 * 4  # bytes: 256 int32, the first three of which are magic number, version, count of tokens
_LLMC_DTYPES = {20240520: "uint16", 20240801: "uint32"}  # by magic number: GPT-2's tokens, Llama 3's


@dataclass(frozen=True, eq=False)
class Windows:
    """One long sequence of tokens, split in two; batches are windows of it. Both arrays are read-only."""

    train: NDArray[np.unsignedinteger]  # [n]
    val: NDArray[np.unsignedinteger]  # [m], the last val_fraction of the corpus
    sha256: str  # of the corpus's bytes
    name: str  # one line for people
    placement: str  # "device" or "host"; the arrays of the latter are memory-mapped
    context: int  # T
    vocab_size: int
    mapped: MappedFile | None  # the file behind the arrays of the host
    tokenizer: Tokenizer | None = None
    note: str = ""  # the end of the line for people

    @property
    def spec(self) -> DataSpec:
        return DataSpec("lm", self.context, self.vocab_size, self.vocab_size)

    @property
    def details(self) -> str:
        sizes = f"{len(self.train):,} + {len(self.val):,} held out, vocabulary {self.vocab_size}"
        return f"tokens {sizes}, on the {self.placement}{self.note}"

    @property
    def resident(self) -> tuple[np.ndarray, np.ndarray] | None:
        return (self.train, self.val) if self.placement == "device" else None

    def train_batches(self, batch: int, seed: int, first_step: int, steps: int) -> np.ndarray:
        """Starts [steps, B] int32, or windows [steps, B, T+1] gathered on the host."""
        starts = window_starts(len(self.train), self.context, batch, seed, first_step, steps)
        return starts if self.placement == "device" else self._windows(self.train, starts)

    def heldout_batches(self, batch: int, batches: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Starts [S, B] or windows [S, B, T+1] that tile the split, and their weights [S, B] float32."""
        starts, weights = heldout_starts(len(self.val), self.context, batch, batches)
        return starts if self.placement == "device" else self._windows(self.val, starts), weights

    def floors(self, batch: int, batches: int | None) -> dict[str, float]:
        """Loss of the best constant prediction on all of `val`; the entropy of a text is unknown."""
        return {"unigram": self.constant_loss}

    @cached_property
    def constant_loss(self) -> float:
        """Loss of a prediction by the token frequencies of `train`."""
        return unigram(counts(self.train), counts(self.val), self.vocab_size)

    def _windows(self, tokens: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Raises DataError when the file behind the tokens has changed."""
        if self.mapped is not None:
            self.mapped.check()
        return gather(tokens, starts, self.context)


def placement_of(config: DataConfig, count: int, dtype: np.dtype) -> str:
    """`data.placement`, with auto resolved for so many tokens."""
    if config.placement != "auto":
        return config.placement
    return "device" if count * dtype.itemsize <= DEVICE_BYTES else "host"


def split(config: DataConfig, label: str, n: int, unit: str) -> int:
    """Number of tokens to train on. Raises DataError, with the sizes that would do, if a part is too short."""
    n_val, fraction = held_out_of(config, n), Fraction(repr(config.val_fraction))
    need = config.context + 1
    smallest = max(ceil(need / (1 - fraction)), config.context * fraction.denominator // fraction.numerator + 1)
    advice = f"a corpus for this context needs at least {smallest:,} {unit}"
    check_lengths(config, label, n - n_val, n_val, unit, advice)
    return n - n_val


def held_out_of(config: DataConfig, n: int) -> int:
    """Number of n that are held out: `val_fraction` as written, where 0.1 is a tenth, so that no rounding moves it."""
    return ceil(n * Fraction(repr(config.val_fraction)))


def check_lengths(config: DataConfig, label: str, n_train: int, n_val: int, unit: str, advice: str = "") -> None:
    """Raises DataError if a part is too short for a window, or both are too long for int32 positions."""
    if n_train + n_val > INT32_END:
        n = n_train + n_val
        raise DataError(f"{label} has {n:,} {unit}, at most {INT32_END:,} have positions that fit an int32")
    need, largest = config.context + 1, min(n_train, n_val) - 1
    if largest < config.context:
        limit = f"the largest context here is {largest:,}" if largest >= 1 else ""
        raise DataError(
            f"{label} is too short: {n_train:,} {unit} to train on and {n_val:,} held out "
            f"(data.val_fraction {config.val_fraction}), each must be at least data.context + 1 = {need:,}; "
            + ("; ".join(filter(None, (limit, advice))) or "no context would do here")
        )


def open_tokens(config: DataConfig) -> Windows:
    """Token ids of `data.path`: an .npy of one axis, llm.c's .bin, or FILE.bin with FILE.json next to it.

    The JSON is `{"dtype": "uint16", "vocab_size": V}`; the vocabulary of the others is their largest id + 1. The text
    that the ids stand for is unknown. Raises DataError.
    """
    assert config.path is not None
    label = f"data.path: {config.path!r}"
    path = located(config.path, label, "an .npy or .bin file of token ids")
    tokens, vocab_size = _binary(path, label) if path.suffix == ".bin" else (_npy(path, label), None)
    n_train = split(config, label, len(tokens), "tokens")
    if vocab_size is not None and vocab_size > INT32_END:
        raise DataError(f"{label}: its header says vocab_size {vocab_size:,}, at most {INT32_END:,} ids fit an int32")
    digest, largest = hashlib.sha256(), 0
    for start in range(0, len(tokens), _CHUNK):
        part = np.ascontiguousarray(tokens[start : start + _CHUNK])
        if part.min() < 0:
            raise DataError(f"{label} has a negative id, {part.min()}")
        digest.update(part.tobytes())
        largest = max(largest, int(part.max()))
    vocab_size = largest + 1 if vocab_size is None else vocab_size
    if largest >= vocab_size:
        raise DataError(f"{label} has the id {largest}, but its header says vocab_size {vocab_size}")
    if vocab_size > INT32_END:
        raise DataError(f"{label} has the id {largest}, at most {INT32_END - 1:,} fits an int32")
    placement = placement_of(config, len(tokens), tokens.dtype)
    mapped = MappedFile.of(label, path) if placement == "host" else None
    if placement == "device":
        tokens = np.array(tokens, tokens.dtype.newbyteorder("="))  # a device takes no other order of bytes
        tokens.flags.writeable = False
    name = f"{config.path} ({tokens.dtype})"
    parts = (tokens[:n_train], tokens[n_train:], digest.hexdigest(), name, placement)
    return Windows(*parts, config.context, vocab_size, mapped)


def _npy(path: Path, label: str) -> np.ndarray:
    try:
        tokens = mapped_npy(path)
    except OSError as error:
        raise DataError(f"{label} can't be read ({reason(error)})") from None
    except ValueError as error:
        if "Python objects" in str(error):  # which only a pickle holds
            raise DataError(f"{label} holds Python objects, expected whole numbers") from None
        cause = "" if "magic string" in str(error) else f" ({reason(error)})"
        raise DataError(f"{label} is not an .npy file, nor a .bin{cause}") from None
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise DataError(f"{label}: expected whole numbers along one axis, got {tokens.dtype} {list(tokens.shape)}")
    if not tokens.size:
        raise DataError(f"{label} is empty")
    return tokens


def _binary(path: Path, label: str) -> tuple[np.ndarray, int | None]:
    """The memory-mapped ids of a .bin, and the size of their vocabulary where its JSON says it."""
    try:
        with open(path, "rb") as file:
            header = np.frombuffer(file.read(_LLMC_HEADER), "<i4", 3) if path.stat().st_size >= _LLMC_HEADER else [0]
    except OSError as error:
        raise DataError(f"{label} can't be read ({reason(error)})") from None
    if dtype := _LLMC_DTYPES.get(int(header[0])):  # as ids of raw uint16, these would be beyond GPT-2's vocabulary
        count, size = int(header[2]), path.stat().st_size
        whole = _LLMC_HEADER + count * np.dtype(dtype).itemsize
        if count < 1 or size != whole:
            ids = f"{count:,} ids of {dtype} ({whole:,} bytes)"
            raise DataError(f"{label} has the header of a token file of llm.c with {ids}, got {size:,} bytes")
        return np.memmap(path, np.dtype(dtype).newbyteorder("<"), "r", offset=_LLMC_HEADER), None
    sidecar = path.with_suffix(".json")
    wanted = f'expected {{"dtype": "uint16" or "uint32", "vocab_size": V}} in {str(sidecar)!r}'
    try:
        content = json_of(sidecar, _MOST_HEADER)
        dtype, vocab_size = content["dtype"], content["vocab_size"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        # A meta.pkl is never opened: a pickle runs code.
        pickled = " vocab_size of meta.pkl, which is not opened," if (path.parent / "meta.pkl").exists() else ""
        nanogpt = (
            f"nanoGPT's .bin files are uint16, V is{pickled} 50257 for GPT-2's tokens, 65 for its shakespeare_char"
        )
        raise DataError(f"{label}: {wanted} ({reason(error)}); {nanogpt}") from None
    if dtype not in _DTYPES or type(vocab_size) is not int or vocab_size < 1:
        raise DataError(f"{label}: {wanted}, got dtype {dtype!r}, vocab_size {vocab_size!r}")
    size, item = path.stat().st_size, np.dtype(dtype).itemsize
    if not size or size % item:
        raise DataError(f"{label} has {size:,} bytes, expected a multiple of {item} ({dtype}), more than none")
    return np.memmap(path, np.dtype(dtype).newbyteorder("<"), "r"), vocab_size
