"""How long the command and the package take to start, side by side with a bare interpreter.

Prints the median of 15 runs of each, taken in turn, on this machine. Usage: ``python benchmarks/startup.py``.
"""

import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import tandem": [sys.executable, "-c", "import tandem"],
    "tandem --help": [str(Path(sys.executable).with_name("tandem")), "--help"],
    # Why help is plain text: the same, drawn by Rich.
    "… with Rich": [
        sys.executable,
        "-c",
        "from tandem.cli import app; app.rich_markup_mode = 'rich'; app(['--help'])",
    ],
}
ROUNDS = 15


def main() -> None:
    """Time every command and print the table."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, command in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - began)
    print(f"{platform.machine()}, Python {platform.python_version()}, median of {ROUNDS} (min to max)")
    for name, taken in seconds.items():
        median, least, most = statistics.median(taken), min(taken), max(taken)
        print(f"{name:16} {median * 1000:6.0f} ms  ({least * 1000:.0f} to {most * 1000:.0f})")


if __name__ == "__main__":
    main()
