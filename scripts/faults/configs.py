"""Configs that were damaged: 10,000 of them through the validator, a hundred through the whole command line.

A trial takes a file of configs/, does one to five things to its bytes, and loads the result in this process, half of
them with overrides. It held when what came back is an experiment, which then goes to YAML and back unchanged, or a
ConfigError whose every line can be printed, within LIMIT_S seconds of processor time. Anything else that is raised
is a traceback to a user. Nothing is trained.
"""

import contextlib
import io
import random
import re
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from scripts.faults.crafted import WORDS, crafted
from scripts.faults.results import Row
from train import cli
from train.config.fields import FIELDS
from train.config.load import MAX_BYTES, MAX_LINES, ConfigError, load, to_yaml

TRIALS, COMMANDS = 10_000, 100
LIMIT_S = 1.0
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
_SHOWN = 5  # broken trials that a row describes
_ONE_LINE = re.compile(r"[^\x00-\x1f\x7f-\x9f]*")

Mutation = Callable[[random.Random, bytes], bytes]


def rows(scale: float, seed: int) -> Iterable[Row]:
    """Three rows: mutated files; crafted ones, all of them, smaller at a small scale; the command line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.yaml"
        yield _loaded(path, max(1, round(TRIALS * scale)), seed)
        yield _crafted(path, MAX_BYTES if scale > 0.05 else MAX_BYTES // 64)
        yield _commanded(path, max(1, round(COMMANDS * scale)), seed)


def _loaded(path: Path, trials: int, seed: int) -> Row:
    broken, slowest, used = [], 0.0, 0
    for trial in range(trials):
        content, overrides = case(seed, trial)
        seconds, valid, wrong = tried(path, content, overrides)
        slowest, used = max(slowest, seconds), used + valid
        if wrong:
            broken.append(f"seed {seed}, trial {trial}: {wrong}")
    note = f"{trials - used:,} refused, {used:,} of use; the slowest took {slowest:.2f} s"
    return _row("a config file was damaged", trials, broken, note)


def _crafted(path: Path, size: int) -> Row:
    broken, times = [], {}
    for name, content in crafted(size).items():
        times[name], _, wrong = tried(path, content, ())
        if wrong:
            broken.append(f"{name}: {wrong}")
    slowest = max(times, key=lambda name: times[name])
    note = f"the slowest, {slowest}, took {times[slowest]:.2f} s"
    return _row("a config file was crafted to break its reader", len(times), broken, note)


def _commanded(path: Path, trials: int, seed: int) -> Row:
    """Through `main`, with files that are refused: what can be used would be trained."""
    broken, done, trial = [], 0, TRIALS
    while done < trials:
        content, overrides = case(seed, trial)
        trial += 1
        path.write_bytes(content)
        try:
            load(path, overrides)
            continue
        except ConfigError:
            done += 1
        if wrong := said(["train", str(path), *overrides], (2,)):
            broken.append(f"seed {seed}, trial {trial - 1}: {wrong}")
    return _row("the same, through the command line", trials, broken, "exit code 2 each")


def _row(fault: str, trials: int, broken: Sequence[str], note: str) -> Row:
    promise = f"one line for each problem or a config that can be used, no traceback, under {LIMIT_S:g} s"
    return Row(fault, promise, trials, trials - len(broken), note, tuple(broken[:_SHOWN]))


def tried(path: Path, content: bytes, overrides: Sequence[str]) -> tuple[float, bool, str]:
    """(processor seconds, whether it can be used, what broke the promise) of loading `content`."""
    path.write_bytes(content)
    began, valid, wrong = time.process_time(), False, ""
    try:
        experiment = load(path, overrides)
    except ConfigError as error:
        seconds = time.process_time() - began
        lines = str(error).splitlines()
        if not lines or len(lines) > MAX_LINES + 1 or not all(_ONE_LINE.fullmatch(line) for line in lines):
            wrong = f"said {str(error)[:100]!r}"
    except BaseException as error:
        seconds = time.process_time() - began
        where = traceback.extract_tb(error.__traceback__)[-1]
        wrong = f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}"
    else:
        seconds, valid = time.process_time() - began, True
        wrong = _unfaithful(path, experiment.variants[:3])
    return seconds, valid, wrong or (f"took {seconds:.2f} s" if seconds > LIMIT_S else "")


def _unfaithful(path: Path, variants: Sequence) -> str:
    """What is wrong with the way of these variants to YAML and back, as it goes into a run directory."""
    for variant in variants:
        path.write_text(to_yaml(variant.config), encoding="utf-8")
        if load(path).variants[0].config != variant.config:
            return f"variant {variant.name} reads back as another config"
    return ""


def said(arguments: Sequence[str], codes: Sequence[int]) -> str:
    """What is wrong with how the command line answered these arguments, which it has to refuse; "" when nothing is."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(arguments)
    except SystemExit as error:  # argparse
        code = error.code
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:100]!r}"
    text = err.getvalue()
    if code not in codes:
        return f"exit code {code}, {text[:100]!r}"
    if not text.startswith(("deltaflow: ", "usage: deltaflow")) or "Traceback" in text:
        return f"said {text[:100]!r}"
    return ""


# The damage


def case(seed: int, trial: int) -> tuple[bytes, list[str]]:
    """The content and the overrides of a trial: the same ones for the same seed and number."""
    draw = random.Random(f"{seed} {trial}")
    content = draw.choice(_originals())
    for _ in range(draw.choice((1, 1, 1, 2, 3, 5))):
        content = draw.choice(MUTATIONS)(draw, content)
    overrides = [_override(draw) for _ in range(draw.choice((0, 0, 1, 3)))]
    return content, overrides


def _originals() -> list[bytes]:
    return [path.read_bytes() for path in sorted(CONFIGS.glob("*.yaml"))]


def _override(draw: random.Random) -> str:
    key = draw.choice((draw.choice(list(FIELDS)), draw.choice(WORDS), "sweep.seed", "variants.with.model.layers"))
    return f"{key}={_value(draw)}".replace("\0", "")  # which no command line can hold


def _value(draw: random.Random) -> str:
    return draw.choice((draw.choice(WORDS), str(draw.randint(-3, 3)), str(draw.random()), "9" * draw.randint(1, 9999)))


def _place(draw: random.Random, content: bytes) -> int:
    return draw.randint(0, len(content))


def flip_bit(draw: random.Random, content: bytes) -> bytes:
    at = draw.randrange(len(content)) if content else 0
    return content[:at] + bytes(byte ^ 1 << draw.randrange(8) for byte in content[at : at + 1]) + content[at + 1 :]


def any_byte(draw: random.Random, content: bytes) -> bytes:
    at = _place(draw, content)
    return content[:at] + draw.randbytes(draw.randint(1, 4)) + content[at + draw.randint(0, 4) :]


def splice(draw: random.Random, content: bytes) -> bytes:
    at = _place(draw, content)
    return content[:at] + draw.choice(WORDS).encode() + content[at + draw.choice((0, 0, 1, 9)) :]


def cut(draw: random.Random, content: bytes) -> bytes:
    return content[: _place(draw, content)]


def lines_moved(draw: random.Random, content: bytes) -> bytes:
    """Two lines swapped, one left out, one doubled, or one put deeper."""
    lines = content.splitlines(keepends=True) or [b""]
    at, to, how = draw.randrange(len(lines)), draw.randrange(len(lines)), draw.randrange(4)
    if how == 0:
        lines[at], lines[to] = lines[to], lines[at]
    elif how == 1:
        del lines[at]
    elif how == 2:
        lines.insert(to, lines[at])
    else:
        lines[at] = b" " * draw.randint(1, 5) + lines[at]
    return b"".join(lines)


def another_value(draw: random.Random, content: bytes) -> bytes:
    """One `key: value` gets another value, of any type and size."""
    found = list(re.finditer(rb":[ ]+([^\s{\[,}\]#]+)", content))
    if not found:
        return content
    start, end = draw.choice(found).span(1)
    return content[:start] + _value(draw).encode() + content[end:]


def another_key(draw: random.Random, content: bytes) -> bytes:
    """A key of the schema, of any section, with any value: on top, or where a line begins."""
    key = draw.choice(list(FIELDS))
    line = f"{draw.choice((key, key.rpartition('.')[2]))}: {_value(draw)}\n".encode()
    starts = [0, *(match.end() for match in re.finditer(rb"\n *", content))]
    at = draw.choice(starts)
    return content[:at] + line + content[at:]


def nested(draw: random.Random, content: bytes) -> bytes:
    at, deep = _place(draw, content), draw.choice((2, 31, 33, 1000, 100_000))
    left, right = draw.choice(((b"[", b"]"), (b"{a: ", b"}"), (b"- ", b"")))
    return content[:at] + left * deep + b"1" + right * draw.choice((0, deep)) + content[at:]


def repeated(draw: random.Random, content: bytes) -> bytes:
    at = _place(draw, content)
    piece = content[at : at + draw.choice((1, 10, 100))]
    return content[:at] + piece * draw.choice((2, 50, 1000)) + content[at:]


def recoded(draw: random.Random, content: bytes) -> bytes:
    text = content.decode("utf-8", "replace")
    return text.encode(draw.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1")), "replace")


def swept(draw: random.Random, content: bytes) -> bytes:
    keys = draw.sample(list(FIELDS), draw.randint(1, 4))
    each = ", ".join(_value(draw) if draw.random() < 0.1 else str(n) for n in range(draw.choice((1, 3, 40, 2000))))
    return content + b"\nsweep:\n" + "".join(f"  {key}: [{each}]\n" for key in keys).encode()


MUTATIONS: tuple[Mutation, ...] = (
    *(flip_bit, any_byte, splice, splice, cut, lines_moved, lines_moved, another_value, another_value, another_key),
    *(nested, repeated, recoded, swept),
)
