"""A plan as people see it (a bar for each card or for RAM, a row for each engine) and as scripts do."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tandem.cli.start import Prepared
from tandem.engines.launch import hidden, without_secrets
from tandem.engines.planning.shares import Share
from tandem.engines.supervisor import in_turn

_GIB = 2**30
_COLOURS = ("cyan", "magenta", "green", "yellow", "blue")
_BAR = 60


@dataclass(frozen=True)
class Place:
    """A card, or RAM, and what there would be in it; in bytes."""

    name: str
    total: int
    others: int
    engines: dict[str, int]

    @property
    def left(self) -> int:
        return self.total - self.others - sum(self.engines.values())


@dataclass(frozen=True)
class Setting:
    """One setting, and where it came from."""

    name: str
    value: str
    source: str


def show(ready: Prepared, console: Console) -> None:
    """The whole plan; plain lines where ``console`` is no terminal."""
    say = _Lines(console)
    say(f"{ready.vllm} on {ready.machine}.")
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(ready.plan.shares)}
    for place in _places(ready):
        say("")
        say(f"{place.name}, {_gib(place.total)}" if place.total else f"{place.name}, size not told")
        if console.is_terminal and place.total:
            console.print(_bar(place, colours))
        for name, size in place.engines.items():
            part = f" ({size / place.total:.0%})" if place.total else ""
            console.print(Text("■ ", colours[name]) + Text(f"{name} {_gib(size)}{part}"))
        if place.total:
            say(f"  in use by others {_gib(place.others)}, left {_gib(place.left)}")
    say("")
    console.print(_table(ready)) if console.is_terminal else _rows(ready, say)
    say("Sizes are in GiB; a step is activations and CUDA graphs, other is what CUDA and Python take.")
    for name, share in ready.plan.shares.items():
        for note in share.notes:
            say(f"{name}: {note}.")
    say(f"Start: {', then '.join(' and '.join(turn) for turn in _turns(ready))}.")
    for spec in ready.plan.specs:
        say("")
        say(f"{spec.engine.name}:")
        say(str(spec.launch))
    say("")
    say("Settings:")
    for setting in _settings(ready):
        say(f"{setting.name} = {setting.value}  ({setting.source})")


def as_json(ready: Prepared) -> str:
    """The whole plan as one JSON object."""
    return json.dumps(
        {
            "vllm": {"version": ".".join(map(str, ready.vllm.version)), "build": ready.vllm.build},
            "machine": str(ready.machine),
            "address": ready.plan.address,
            "memory": [{**asdict(place), "left": place.left} for place in _places(ready)],
            "engines": [
                {
                    "name": spec.engine.name,
                    "kind": spec.engine.kind,
                    "model": spec.engine.model,
                    **asdict(share),
                    "tokens": share.tokens,
                    "command": str(spec.launch),
                }
                for spec in ready.plan.specs
                for share in [ready.plan.shares[spec.engine.name]]
            ],
            "start": _turns(ready),
            "settings": [asdict(setting) for setting in _settings(ready)],
        },
        indent=2,
    )


class _Lines:
    """Says a line as it is: nothing in it is markup, and none is broken."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)


def _places(ready: Prepared) -> list[Place]:
    shares = ready.plan.shares
    if ready.vllm.build == "cpu":
        used = ready.machine.memory - ready.machine.free
        return [Place("RAM", ready.machine.memory, used, {name: _size(share, 0) for name, share in shares.items()})]
    cards = ready.machine.cards
    return [
        Place(
            f"card {card.index}, {card.name}",
            card.total,
            card.total - card.free,
            {
                name: _size(share, card.total)
                for name, share in shares.items()
                if card.index in share.cards or (not share.cards and card is cards[0])
            },
        )
        for card in cards
    ]


def _size(share: Share, total: int) -> int:
    if share.gpu_memory is not None:
        return int(share.gpu_memory * total)
    return share.parts.total if share.parts else share.kv_cache or 0


def _bar(place: Place, colours: dict[str, str]) -> Text:
    bar = Text()
    filled = 0
    for name, size in place.engines.items():
        width = max(1, round(_BAR * size / place.total))
        bar.append("█" * width, colours[name])
        filled += width
    others = round(_BAR * place.others / place.total)
    bar.append("░" * max(0, _BAR - filled - others), "dim")
    bar.append("▒" * others, "dim")
    return bar


def _cells(ready: Prepared) -> Iterator[dict[str, str]]:
    """A row for each engine, sizes in GiB."""
    for spec in ready.plan.specs:
        share = ready.plan.shares[spec.engine.name]
        parts = share.parts
        yield {
            "engine": spec.engine.name,
            "model": spec.engine.model,
            "weights": f"{parts.weights / _GIB:.2f}" if parts else "",
            "step": f"{(parts.activations + parts.graphs) / _GIB:.2f}" if parts else "",
            "other": f"{parts.other / _GIB:.2f}" if parts else "",
            "cache": f"{parts.cache / _GIB:.2f}" if parts else "",
            "tokens": f"{share.tokens:,}" if share.tokens else "",
            "context": f"{share.context:,}" if share.context else "",
            "threads": str(share.threads) if share.threads else "",
            "sizes": "measured" if share.measured else "estimated" if parts else "not known",
        }


def _table(ready: Prepared) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    rows = list(_cells(ready))
    shown = [column for column in rows[0] if any(row[column] for row in rows)]
    for column in shown:
        words = column in {"engine", "model", "sizes"}
        table.add_column(
            column.upper(), overflow="fold", no_wrap=column != "model", justify="left" if words else "right"
        )
    for row in rows:
        table.add_row(*(row[column] for column in shown))
    return table


def _rows(ready: Prepared, say: _Lines) -> None:
    for row in _cells(ready):
        told = ", ".join(f"{column} {value}" for column, value in row.items() if value and column != "engine")
        say(f"{row['engine']}: {told}")


def _turns(ready: Prepared) -> list[list[str]]:
    return [[spec.engine.name for spec in turn] for turn in in_turn(ready.plan.specs)]


def _settings(ready: Prepared) -> Iterator[Setting]:
    """What engines and router would have, defaults included where there is a choice to make; no secret."""
    settings, origins = ready.loaded.settings, ready.loaded.origins
    told = settings.model_dump()
    for name in told["engines"]:
        for field, value in settings.engines[name]:
            setting = ("engines", name, field)
            given = [where for path, where in origins.items() if path[:3] == setting]
            if ready.demo and field != "port":
                given = ["the demo"] if field in settings.engines[name].model_fields_set else []
            if given or field in _ALWAYS:
                yield Setting(".".join(setting), _value(field, value), given[0] if given else "default")
    for path, where in sorted(origins.items()):
        if path[0] != "engines":
            value = told
            for part in path:
                value = value[part]
            yield Setting(".".join(path), _value(path[-1], value), where)


_ALWAYS = frozenset({"model", "port", "memory", "dtype", "max_model_len"})


def _value(field: str, value: Any) -> str:
    if field == "env":
        return ", ".join(f"{name}={hidden(name, each)}" for name, each in value.items())
    if field == "args":
        return " ".join(without_secrets(value))
    if value is None:
        return "not set"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return hidden(field, str(value))


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"
