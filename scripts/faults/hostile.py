"""Texts that damage a config or were made to break its reader: nasty words, mutations, files as large as can be."""

import itertools
import random
import re

from train.config.fields import FIELDS
from train.config.load import MAX_BYTES

# Spliced in anywhere: what is a value to one reader and a key, a number or an error to another.
WORDS = (
    *("null", "~", "true", "no", "off", "1:30", "010", "0x1F", "1_000", "2024-01-01", "=", "<<", "*a", "&a", "&a *a"),
    *(".inf", "-.inf", ".nan", "1e999", "-1", "0", "1e-400", "9" * 30, "9" * 5000, "-" + "9" * 400, "1e" + "9" * 400),
    *("18446744073709551615", "9223372036854775808", "4294967296", "0o777777777777777777777777"),
    *("!!python/object/apply:os.system [exit]", "!!binary aGk=", "!!set {a}", "!!timestamp 2001-01-01", "!x y", "! a"),
    *("<<: {a: 1}", "<<: *a", "? [a]\n: 1", "? a", "a: b: c", "---\n", "--- a", "...\n", "%YAML 9.9\n", "%TAG ! a\n"),
    *("[", "]", "{", "}", "{}", "[]", "[[[[", "- - - -", "{a: {a: {a: ", "'", '"', "'a' b", "|", ">-", "|9", ">+1"),
    *("\t", "\t- a", "\0", "\x07", "\x1b[2J", "\x7f", "\x85", "\u2028", "\ufeff", "\ufffe", "\u202e", "é", "𝛿"),
    *('"\\ud800"', '"\\x00"', '"\\U00110000"', '"\\u"', '"\\', "#", " #", "#\n", ": ", ":", ",", "- ", "@", "`", "%"),
    *("..", "../x", "/etc/passwd", "~/x", "a/b", "a\\b", "C:\\x", "con", "nul", " ", "a" * 5000, ".", "-"),
    *("\r", "\r\n", "data: {kind: 'a:b'}", "model.layers", "model: 1", "model: []", "train: {steps: [1]}"),
    *("variants: [a]", "sweep: {seed: 1}", "sweep: {nothing: [1]}", "sweep: {seed: []}", "expect: {x: 1}"),
    *("variants: {'': {}}", "residual: {rule: attnres, block: 4, x: 1}", "residual: []", "betas: [1]"),
    *("transition: [[1]]", "name: ''"),
)


# Damage to a config


def value(draw: random.Random) -> str:
    return draw.choice((draw.choice(WORDS), str(draw.randint(-3, 3)), str(draw.random()), "9" * draw.randint(1, 9999)))


def override(draw: random.Random) -> str:
    key = draw.choice((draw.choice(list(FIELDS)), draw.choice(WORDS), "sweep.seed", "variants.with.model.layers"))
    return f"{key}={value(draw)}".replace("\0", "")  # which no command line can hold


def mutate(draw: random.Random, content: bytes) -> bytes:
    """One stretch of bytes, a value, or a line, gives way to another piece, which may be empty; or all is recoded."""
    lines = content.splitlines(keepends=True) or [b""]
    where = draw.randrange(4)
    if where == 0 and (values := list(re.finditer(rb":[ ]+([^\s{\[,}\]#]+)", content))):
        start, end = draw.choice(values).span(1)
    elif where == 1:
        number = draw.randrange(len(lines))
        start = len(b"".join(lines[:number]))
        end = start + draw.choice((0, len(lines[number])))
    else:
        start = draw.randint(0, len(content))
        end = draw.choice((start, start, start + 1, start + draw.randint(1, 9), len(content)))
    key, deep = draw.choice(list(FIELDS)), draw.choice((2, 31, 33, 1000, 100_000))
    left, right = draw.choice(((b"[", b"]"), (b"{a: ", b"}"), (b"- ", b"")))
    each = ", ".join(value(draw) if draw.random() < 0.1 else str(n) for n in range(draw.choice((1, 3, 40, 2000))))
    pieces = (
        b"",
        draw.randbytes(draw.randint(1, 4)),
        bytes(byte ^ 1 << draw.randrange(8) for byte in content[start : start + 1]),  # a bit
        draw.choice(WORDS).encode(),
        value(draw).encode(),
        draw.choice(lines),
        b" " * draw.randint(1, 5),
        f"{draw.choice((key, key.rpartition('.')[2]))}: {value(draw)}\n".encode(),
        left * deep + b"1" + right * draw.choice((0, deep)),
        content[start : start + draw.choice((1, 10, 100))] * draw.choice((2, 50, 1000)),
        f"\nsweep:\n  {key}: [{each}]\n".encode(),
    )
    if draw.random() < 0.05:
        codec = draw.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1"))
        return content.decode("utf-8", "replace").encode(codec, "replace")
    return content[:start] + draw.choice(pieces) + content[end:]


# Whole files


def bomb(levels: int = 9, width: int = 9) -> str:
    """Billion laughs: `levels` lists of `width` aliases each, width^levels values to whoever follows them."""
    lines = ["a0: &a0 [lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels + 1)]
    return "name: x\n" + "\n".join(lines) + "\n"


def merge_bomb(levels: int = 20) -> str:
    """Mappings each of which merges the one before it twice: 2^levels keys are copied by who merges."""
    lines = ["m0: &m0 {a: 1, b: 2}"]
    lines += [f"m{n}: &m{n} {{<<: [*m{n - 1}, *m{n - 1}], k{n}: 1}}" for n in range(1, levels + 1)]
    return "name: x\n" + "\n".join(lines) + "\n"


def exploding() -> str:
    """A sweep of 10^9 points."""
    values = ", ".join(map(str, range(1000)))
    keys = ("seed", "data.task_seed", "train.steps")
    return "name: x\nsweep:\n" + "".join(f"  {key}: [{values}]\n" for key in keys)


# Pieces that fill a file, and what is put around them.
PIECES = (
    *("#", "# \n", "\n", " ", "\t", "a", "a ", "\n a", "\n x\n", "''", "\\n", "a b\n  ", "[", "{a: ", "- "),
    *("1,", "'',", "a: 1, ", "- 1\n", "seed: 1\n", "a.", "? ", "? a\n", ":", ": ", ",", "-", ".", "&a "),
    *("- &a 1\n", "- *a\n", "%41", "- !!str a\n", "%YAML 1.1\n", "---\n", "...\n", "é", "𝛿", "\u2028"),
    *("9", "f", "x, "),
)
FRAMES = (
    *(("", ""), ("", ": 1"), ("name: ", ""), ("name: '", "'"), ('name: "', '"'), ("name: [", "]"), ("name: |", "")),
    *(("name: >\n", ""), ("name: &", ""), ("name: !", ""), ("{name: x, ", "}"), ("name: x\noptimizer: {lr: 1e", "}")),
    *(("name: x\noptimizer: {lr: 0.", "}"), ("name: x\nseed: 0x", ""), ("name: x\nsweep:\n  seed: [", "]\n")),
)
# Lines that differ in the number at their `#`, after a first line.
NUMBERED = (
    *(("", "k#: 1\n"), ("model:\n", "  k#: 1\n"), ("", "%TAG !t#! a\n"), ("name: x\nexpect:\n", "  v#: {a: 1}\n")),
    *(("name: x\nvariants:\n", "  v#: {}\n"), ("name: x\nvariants:\n", "  v#: {seed: x}\n")),
    ("name: x\nsweep:\n  seed: [", "#, "),
)


def crafted(size: int = MAX_BYTES) -> dict[str, bytes]:
    """Whole files by name; most have `size` bytes, so that they take a reader as long as such a file can."""
    files = {}
    for (before, after), piece in itertools.product(FRAMES, PIECES):
        count = (size - len((before + after).encode())) // len(piece.encode())
        files[f"{before!r} {piece!r} {after!r}"] = (before + piece * count + after).encode()
    for before, line in NUMBERED:
        numbers = range((size - len(before)) // (len(line) + 5))
        files[f"{before!r} {line!r}"] = (
            before + "".join(line.replace("#", str(number)) for number in numbers)
        ).encode()
    deeper = "".join(f"{' ' * n}a:\n" for n in range(int((2 * size) ** 0.5) - 4))
    texts = [deeper, bomb(), merge_bomb(), exploding(), *("", "a", "1", "[]", "- a", "null", "'", "{}", "{a}")]
    texts += [f"name: {word}\nseed: {word}\n" for word in WORDS]
    keys = ("model.layers", "model.width", "data.context", "data.batch", "train.steps")
    texts += [f"name: x\n{key}: {2**power}\n" for key, power in itertools.product(keys, (31, 63, 70))]
    files |= {f"text {number}": text.encode() for number, text in enumerate(texts)}
    for codec in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig", "cp500", "utf-7", "latin-1"):
        files[codec] = ("name: é\n" if codec == "latin-1" else "name: x\nmodel: {layers: 2}\n").encode(codec)
    for wrong in (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\0", b"\xc0\x80"):
        files[f"bytes {wrong.hex()}"] = b"name: " + wrong
    return files | {"too large": b"#" * (MAX_BYTES + 1)}
