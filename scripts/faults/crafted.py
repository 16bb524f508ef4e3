"""Texts that were made to break a reader of YAML: nasty words, and files as large as a config may be."""

import itertools

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
    *(
        "..",
        "../x",
        "/etc/passwd",
        "~/x",
        "a/b",
        "a\\b",
        "C:\\x",
        "con",
        "nul",
        " ",
        "a" * 5000,
        ".",
        "-",
        "\r",
        "\r\n",
    ),
    *("data: {kind: 'a:b'}", "model.layers", "model: 1", "model: []", "train: {steps: [1]}", "variants: [a]"),
    *("sweep: {seed: 1}", "sweep: {nothing: [1]}", "sweep: {seed: []}", "expect: {x: 1}", "variants: {'': {}}"),
    *("residual: {rule: attnres, block: 4, x: 1}", "residual: []", "betas: [1]", "transition: [[1]]", "name: ''"),
)


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


def filled(piece: str, size: int, before: str = "", after: str = "") -> bytes:
    """`piece` as often as fits between the two, in at most `size` bytes of UTF-8."""
    room = size - len((before + after).encode())
    return (before + piece * (room // len(piece.encode())) + after).encode()


def numbered(line: str, size: int, before: str = "") -> bytes:
    """Lines that differ in the number at their `#`, as many as fit."""
    longest = len(line) + 5
    lines = (line.replace("#", str(number)) for number in range((size - len(before)) // longest))
    return (before + "".join(lines)).encode()


def exploding() -> str:
    """A sweep of 10^9 points."""
    values = ", ".join(map(str, range(1000)))
    keys = ("seed", "data.task_seed", "train.steps")
    return "name: x\nsweep:\n" + "".join(f"  {key}: [{values}]\n" for key in keys)


def crafted(size: int = MAX_BYTES) -> dict[str, bytes]:
    """Whole files by name; most have `size` bytes, so that they take a reader as long as such a file can."""

    def of(piece: str, before: str = "", after: str = "") -> bytes:
        return filled(piece, size, before, after)

    full = {
        "comment": of("#"),
        "comments": of("# \n"),
        "blank lines": of("\n", "name: x\n"),
        "spaces": of(" ", "name: x\n"),
        "tabs": of("\t", "name:"),
        "plain scalar": of("a", "name: "),
        "plain words": of("a ", "name: "),
        "plain lines": of("\n a", "name: a"),
        "single quotes": of("a", "name: '", "'"),
        "quotes in quotes": of("''", "name: '", "'"),
        "escapes": of("\\n", 'name: "', '"'),
        "open quote": of("a b\n  ", 'name: "'),
        "literal": of("\n x", "name: |"),
        "folded": of("\n x\n", "name: >\n"),
        "flow depth": of("[", "name: "),
        "flow mappings": of("{a: ", "name: "),
        "block depth": of("- "),
        "deeper and deeper": "".join(f"{' ' * n}a:\n" for n in range(int((2 * size) ** 0.5) - 4)).encode(),
        "flow list": of("1,", "name: [", "]"),
        "flow texts": of("'',", "name: [", "]"),
        "flow keys": of("a: 1, ", "{name: x, ", "}"),
        "block list": of("- 1\n", "name:\n"),
        "keys": numbered("k#: 1\n", size),
        "keys of model": numbered("  k#: 1\n", size, "model:\n"),
        "the same key": of("seed: 1\n", "name: x\n"),
        "long key": of("a", "", ": 1"),
        "long key in quotes": of("a", "'", "': 1"),
        "dotted key": of("a.", "", "a: 1"),
        "variants": numbered("  v#: {}\n", size, "name: x\nvariants:\n"),
        "wrong variants": numbered("  v#: {seed: x}\n", min(size, 16_000), "name: x\nvariants:\n"),
        "swept texts": of("x, ", "name: x\nsweep:\n  seed: [", "]\n"),
        "promises": numbered("  v#: {a: 1}\n", size, "name: x\nexpect:\n"),
        "question marks": of("? "),
        "question lines": of("? a\n"),
        "colons": of(":"),
        "spaced colons": of(": "),
        "commas": of(",", "name: ["),
        "dashes": of("-"),
        "dots": of("."),
        "anchors": of("&a "),
        "anchored values": of("- &a 1\n"),
        "aliases": of("- *a\n"),
        "long anchor": of("a", "name: &"),
        "tags": of("- !!str a\n"),
        "long tag": of("a", "name: !"),
        "percents in a tag": of("%41", "name: !"),
        "directives": of("%YAML 1.1\n"),
        "tag directives": numbered("%TAG !t#! a\n", size),
        "documents": of("---\n"),
        "ends of documents": of("...\n"),
        "accents": of("é", "name: "),
        "wide characters": of("𝛿", "name: '", "'"),
        "line separators": of("\u2028", "name: 'a", "'"),
        "digits": of("9", "name: x\nseed: "),
        "fraction": of("9", "name: x\noptimizer: {lr: 0.", "}"),
        "exponent": of("9", "name: x\noptimizer: {lr: 1e", "}"),
        "hexadecimal": of("f", "name: x\nseed: 0x"),
        "too large": b"#" * (MAX_BYTES + 1),
        "swept values": numbered("#, ", min(size, 9_000), "name: x\nsweep:\n  seed: [") + b"]\n",
    }
    words = {f"word {n}": f"name: {word}\nseed: {word}\n".encode() for n, word in enumerate(WORDS)}
    tops = {f"top {n}": top.encode() for n, top in enumerate(("", "a", "1", "[]", "- a", "null", "'", "{}", "{a}"))}
    plain = "name: x\nmodel: {layers: 2}\n"
    encodings = ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig", "cp500", "utf-7")
    coded = {name: plain.encode(name) for name in encodings} | {"latin-1": "name: é\n".encode("latin-1")}
    broken = {
        f"bytes {text.hex()}": b"name: " + text for text in (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\0", b"\xc0\x80")
    }
    bombs = {"laughs": bomb().encode(), "merges": merge_bomb().encode(), "sweep": exploding().encode()}
    sizes = itertools.product(
        ("model.layers", "model.width", "data.context", "data.batch", "train.steps"), (31, 63, 70)
    )
    huge = {f"{key} 2^{power}": f"name: x\n{key}: {2**power}\n".encode() for key, power in sizes}
    return full | words | tops | coded | broken | bombs | huge
