"""`tandem logs`: what engines and router have logged."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from tandem.cli import flags

_LOOK = 0.1  # seconds between two looks for new lines
_COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "bright_cyan", "bright_yellow", "bright_green")


def logs(
    engine: Annotated[
        str | None, typer.Argument(help="One engine's log, or `router`'s; by default all.", show_default=False)
    ] = None,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on with new lines, until the service ends.")
    ] = False,
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, help="How many lines of each log.")] = 100,
    run_dir: flags.ItsRunDir = None,
    port: flags.ItsPort = None,
) -> None:
    """Show the logs of a service, also of one that has ended."""
    import time

    from rich.console import Console
    from rich.text import Text

    from tandem.cli import talk
    from tandem.logfile import Reader, in_order

    folder = talk.find(run_dir, port)
    names = list(_names(folder.logs, engine))
    width = max(map(len, names))
    colours = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(names)}
    console = Console(highlight=False, soft_wrap=True)

    def show(name: str, line: str) -> None:
        # A log may hold anything, and must not steer the terminal.
        plain = "".join(letter if letter.isprintable() or letter == "\t" else "\ufffd" for letter in line)
        console.print(Text.assemble((f"{name:<{width}} | ", colours[name]), plain))

    readers = {name: Reader(folder.log(name), lines) for name in names}
    try:
        for name, line in in_order([(name, reader.new()) for name, reader in readers.items()]):
            show(name, line)
        alive = follow
        while alive:
            alive = folder.alive()  # looked at first: what it wrote until then is still shown
            for name, reader in readers.items():
                for line in reader.new():
                    show(name, line)
            time.sleep(_LOOK if alive else 0)
    except KeyboardInterrupt:
        return
    finally:
        for reader in readers.values():
            reader.close()


def _names(folder: Path, engine: str | None) -> Iterator[str]:
    """The logs in ``folder``, or the one that is asked for."""
    from tandem.errors import SettingsError, SetupError

    known: Sequence[str] = sorted(path.stem for path in folder.glob("*.log"))
    if not known:
        raise SetupError(
            f"there are no logs in {folder}: no service has run there",
            "Start one with `tandem up`, or name its folder with --run-dir",
        )
    if engine is None:
        yield from known
    elif engine in known:
        yield engine
    else:
        raise SettingsError(f"there is no log of {engine} in {folder}", f"There are those of {', '.join(known)}")
