"""Numbers, sizes, durations, layers and commands as text, each written in one way everywhere."""

import math
import os
import shlex
import shutil
import sys
from collections.abc import Sequence

MISSING = "-"


def number(x: float | None, log10: float | None = None, *, digits: int = 4, scientific: bool = False) -> str:
    """A number with `digits` significant digits; scientific below 1e-3 and from 1e5 on, or when asked for.

    A whole number given as int is written in full. `log10` is log10|x|, for an x that a float cannot hold; it takes
    precedence, and x then gives the sign only. None, without a log10, is missing.

    >>> number(0.25), number(12345.6), number(123456.0), number(0.000999)
    ('0.2500', '12346', '1.235e+05', '9.990e-04')
    >>> number(0.0, log10=-363.886, digits=2)
    '1.3e-364'
    >>> number(2000), number(0.0), number(None), number(float("nan"))
    ('2000', '0', '-', 'nan')
    """
    if log10 is None:
        if x is None:
            return MISSING
        if isinstance(x, int):
            return str(x)
        if x == 0 or not math.isfinite(x):
            return "0" if x == 0 else str(float(x))
        mantissa, power = f"{abs(x):.{digits - 1}e}".split("e")
        exponent = int(power)
    else:
        if not math.isfinite(log10):
            return {math.inf: "inf", -math.inf: "0"}.get(log10, "nan")
        exponent = math.floor(log10)
        mantissa = f"{10 ** (log10 - exponent):.{digits - 1}f}"
        if float(mantissa) >= 10:  # rounded up to the next power
            mantissa, exponent = f"{1:.{digits - 1}f}", exponent + 1
    sign = "-" if x is not None and x < 0 else ""
    if scientific or not -3 <= exponent < 5:
        return f"{sign}{mantissa}e{exponent:+03d}"
    value = abs(x) if log10 is None and x is not None else 10 ** (log10 or 0.0)
    return f"{sign}{value:.{max(0, digits - 1 - exponent)}f}"


def factor(log10: float) -> str:
    """10^log10 as a factor in a sentence.

    >>> factor(1.672), factor(-3.708), factor(-0.1), factor(-40.0), factor(4.3), factor(-math.inf)
    ('47', '1/5,100', '0.79', '1.0e-40', '20,000', '0')
    """
    if 1 <= abs(log10) < 6:
        return f"{'1/' if log10 < 0 else ''}{float(f'{10 ** abs(log10):.2g}'):,.0f}"
    return "not finite" if math.isnan(log10) or log10 == math.inf else number(None, log10, digits=2)


def power(log10: float) -> str:
    """10^log10 with three digits, or two where it is scientific.

    >>> power(-0.30103), power(-4.5), power(-364.1), power(-400.0000000000004)
    ('0.5', '3.2e-05', '7.9e-365', '1.0e-400')
    """
    return f"{10.0**log10:.3g}" if -3 <= log10 < 5 else number(None, log10, digits=2)


def norm(value: float | None, log10: float | None) -> str:
    """A norm as d.dde±XX. Its log10 decides, so that none is ever floored; an exact zero is 0."""
    return number(value, log10, digits=3, scientific=True)


def plus_minus(mean: float | None, half: float | None) -> str:
    """A mean and half the width of its interval, the mean written as far as two digits of the half-width reach.

    >>> plus_minus(2.12259, 0.0341), plus_minus(0.97, None), plus_minus(1234.5, 120.0), plus_minus(2.0, 0.0)
    ('2.123 ± 0.034', '0.9700', '1234 ± 120', '2.000 ± 0')
    """
    if mean is None or half is None or not (math.isfinite(mean) and math.isfinite(half)):
        return number(mean)
    half = 0.0 if half < 1e-12 * abs(mean) else half  # what adding up equal numbers leaves
    places = 3 if half == 0 else max(0, 1 - math.floor(math.log10(half)))
    if places > 9 or max(abs(mean), half) >= 1e5:
        return f"{number(mean)} ± {number(half, digits=2)}"
    return f"{mean:.{places}f} ± {half:.{places if half else 0}f}"


def duration(seconds: float) -> str:
    """
    >>> duration(0.2), duration(59.6), duration(3723), duration(2 * 86400 + 3600)
    ('0s', '1m 00s', '1h 02m', '2d 01h')
    """
    if not 0 <= seconds < 1e9:
        return "?"
    whole = round(seconds)
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size}{unit} {whole % size // part:02d}{smaller}"
    return f"{whole}s"


def size(count: float) -> str:
    """
    >>> size(812), size(41_300_000), size(8.14e9)
    ('812 bytes', '41.3 MB', '8.14 GB')
    """
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:,.0f} bytes"


def command(*arguments: object) -> str:
    """A command of this installation that can be pasted into a shell, as the one that runs was called.

    `deltaflow ...` if that is on PATH and is this installation, else its path, or `python -m train ...`.
    """
    called = sys.argv[0]
    if os.path.basename(called).startswith("deltaflow"):
        on_path = shutil.which("deltaflow")
        same = on_path is not None and os.path.exists(called) and os.path.samefile(on_path, called)
        program = ["deltaflow" if same else called]
    else:
        by_name = os.path.basename(called) == "__main__.py"
        program = [sys.orig_argv[0] if by_name else sys.executable, "-m", __package__ or "train"]
    return shlex.join([*program, *map(str, arguments)])


LAYER = r"layer_\d+"  # a pattern of what `layer` writes
LAYER_INDEX = r"layer_0*(\d{1,5})"  # the same, with its index as a group


def layer(index: int) -> str:
    """The part of a tag that names a layer, or a depth of the stream.

    >>> layer(3)
    'layer_003'
    """
    return f"layer_{index:03d}"


def right_aligned(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[bool]:
    """True for each column that holds nothing but numbers, or pairs of them such as `1.2 → 3.4`."""

    def numeric(cell: str) -> bool:
        try:
            float(cell.partition(" ± ")[0].removeprefix("≤").removeprefix("1/").replace(",", ""))
        except ValueError:
            return cell == MISSING
        return True

    cells = [[part for row in rows for part in row[i].split(" → ")] for i in range(len(columns))]
    return [all(map(numeric, column)) and bool(rows) for column in cells]
