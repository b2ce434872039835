"""What it costs to write vectors as JSON: 64 of 3,584 dimensions, as floats, from an engine's answer.

Prints milliseconds of CPU for one such answer, in a process tuned as the router is, and without that. Usage:
``python benchmarks/rendering.py [--quick]``.
"""

import base64
import json
import random
import statistics
import struct
import subprocess
import sys
import time

import machine
import report

from tandem import __version__
from tandem.router import server, vectors

NUMBER, DIMENSIONS = 64, 3584
ROUNDS, ANSWERS = 7, 20


def main() -> None:
    """Measure both in turn and print the table."""
    if sys.argv[1:] == ["once"] or sys.argv[1:] == ["once", "tuned"]:
        print(_once(tuned="tuned" in sys.argv))
        return
    rounds = 1 if machine.arguments(str(__doc__)).quick else ROUNDS
    found: dict[str, list[float]] = {"tuned": [], "as it comes": []}
    with machine.neighbours() as others:
        for _ in range(rounds):
            for name, taken in found.items():
                command = [sys.executable, __file__, "once", *(["tuned"] if name == "tuned" else [])]
                taken.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        seen = others()
    rows = [[name, report.spread(taken, ",.1f")] for name, taken in found.items()]
    print(report.table((f"{NUMBER} x {DIMENSIONS:,} floats", "CPU, ms"), rows))
    print(f"\n{machine.described({'tandem': __version__})} {seen}")


def _once(*, tuned: bool) -> float:
    """Median of some answers, in milliseconds of CPU."""
    vectors.load()
    if tuned:
        server.tune()
    chance = random.Random(0)  # noqa: S311 - numbers of some size
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(
                struct.pack(f"<{DIMENSIONS}f", *(chance.gauss(0, 1 / 60) for _ in range(DIMENSIONS)))
            ).decode(),
        }
        for index in range(NUMBER)
    ]
    said = json.dumps({"data": data, "usage": {"prompt_tokens": 1, "total_tokens": 1}}).encode()
    taken = []
    for _ in range(ANSWERS):
        began = time.process_time()
        given, tokens = vectors.read(said, NUMBER)
        vectors.answer(vectors.items(given, 0, "float"), "model", tokens)
        taken.append((time.process_time() - began) * 1000)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
