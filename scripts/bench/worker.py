"""One contestant in a process of its own: `python -m scripts.bench.worker REQUEST`, REQUEST a JSON object.

Two frameworks in one process would fight over its cores. Lines out: `ready {facts}` or `failed {kind, why}` once,
then `seconds X` for each line `run N` that comes in. Between them the process sleeps. It ends with its input.
"""

import importlib
import json
import os
import sys
from dataclasses import asdict
from typing import IO

from .contestant import Contestant, Unavailable
from .shapes import Shapes


def main() -> None:
    # What a library prints must not end up between the answers: file descriptor 1 becomes stderr.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    contestant = prepare(json.loads(sys.argv[1]), answers)
    if contestant is None:
        return
    answers.write(f"ready {json.dumps(asdict(contestant.facts))}\n")
    for line in sys.stdin:
        n = int(line.removeprefix("run "))
        answers.write(f"seconds {contestant.run(n)!r}\n")


def prepare(request: dict, answers: IO[str]) -> Contestant | None:
    """Builds the contestant and does its first steps; None when that failed, which `answers` then says."""
    arguments = dict(request["arguments"])
    if "shapes" in arguments:
        arguments["shapes"] = Shapes(**arguments["shapes"])
    kind, why = "", ""
    try:
        contestant = importlib.import_module(request["module"]).contestant(**arguments)
        contestant.run(contestant.facts.window)
        return contestant
    except ModuleNotFoundError as error:
        kind, why = "not installed", error.name or str(error)
    except (NotImplementedError, Unavailable) as error:
        kind, why = "not available", str(error)
    except Exception as error:
        kind, why = "failed", f"{type(error).__name__}: {str(error).strip().partition(os.linesep)[0]}"
    answers.write(f"failed {json.dumps({'kind': kind, 'why': why})}\n")
    return None


if __name__ == "__main__":
    main()
