"""`tandem bench`: how fast a service is, how that compares with another, and whether its memory stays flat."""

from collections.abc import Collection, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tandem.bench.run import Plan, Run

_DEFAULT_URL = "http://127.0.0.1:8200/v1"
_IN_ROUNDS = ("overhead", "embeddings", "completions", "streams")
# The scenarios that heed an option, for those that not all of them do: with any other it would do nothing, unseen.
_HEEDED_BY = {
    **dict.fromkeys(("vs", "clients", "seconds", "rounds", "warm_up"), _IN_ROUNDS),
    **dict.fromkeys(("hours", "pid"), ("soak",)),
    **dict.fromkeys(("dimensions", "encoding_format"), ("overhead", "embeddings", "soak")),
    "texts": ("embeddings", "soak"),
    "words": ("embeddings", "completions", "streams", "soak"),
    "max_tokens": ("overhead", "completions", "streams", "soak"),
}


class EncodingFormat(StrEnum):
    FLOAT = "float"
    BASE64 = "base64"


def bench(
    ctx: typer.Context,
    scenario: Annotated[
        str | None,
        typer.Argument(
            metavar="SCENARIO",
            help="overhead, embeddings, completions, streams or soak; by default embeddings, completions and streams.",
        ),
    ] = None,
    url: Annotated[str, typer.Option(help="The base URL of an OpenAI-compatible service.")] = _DEFAULT_URL,
    vs: Annotated[str | None, typer.Option(metavar="URL", help="Another to compare it with, in turns.")] = None,
    model: Annotated[str | None, typer.Option(help="The model to ask for [default: the first that answers].")] = None,
    vs_model: Annotated[str | None, typer.Option(help="The same for --vs.")] = None,
    clients: Annotated[int, typer.Option(min=1, help="Users, each with one request in flight.")] = 50,
    rate: Annotated[
        float | None,
        typer.Option(help="Requests/s at random times instead, whether answered or not (a soak: 5 by default)."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each round is measured.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each scenario, on each side.")] = 3,
    warm_up: Annotated[float, typer.Option(min=0, help="Seconds of load before each round that do not count.")] = 2,
    texts: Annotated[int, typer.Option(min=1, help="Texts in an embedding request.")] = 1,
    words: Annotated[int, typer.Option(min=1, help="Words in a text or prompt.")] = 32,
    dimensions: Annotated[int | None, typer.Option(min=1, help="Dimensions to ask embeddings for.")] = None,
    encoding_format: Annotated[EncodingFormat | None, typer.Option(help="How to ask for vectors.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a completion [default: 100; overhead 1, soak 16].")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds after which a request is an error.")] = 60,
    api_key: Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="The API key of both sides.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write a JSON report.")] = None,
    html_file: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page with plots.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Compare with the target table; exit code 1 below it.")
    ] = False,
    hours: Annotated[float | None, typer.Option(help="How long to soak [default: 1].")] = None,
    pid: Annotated[
        int | None,
        typer.Option(min=1, help="Whose memory a soak watches [default: who listens at --url, on this machine]."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="What texts and times are drawn from [default: by chance].")] = None,
) -> None:
    """Measure any OpenAI-compatible service. Ctrl-C ends it with what was measured so far, and exit code 130."""
    import secrets

    from tandem.bench.load import Load
    from tandem.bench.run import Plan
    from tandem.bench.scenarios import Shape

    _check_scenario(ctx, scenario)
    _check_numbers(ctx)
    _check_key(api_key)
    _check_pid(pid)
    _check_files([file for file in (json_file, html_file) if file is not None])
    soaking = scenario == "soak"
    plan = Plan(
        scenario=scenario,
        url=url,
        vs=vs,
        key=api_key,
        model=model,
        vs_model=vs_model,
        shape=Shape(texts, words, dimensions, encoding_format and encoding_format.value, max_tokens),
        load=Load(clients, rate, (hours or 1) * 3600 if soaking else seconds, warm_up, timeout),
        rounds=rounds,
        pid=pid,
        seed=secrets.randbits(32) if seed is None else seed,
    )
    _tell(_measure(plan), json_file, html_file, check=check)


def _measure(plan: "Plan") -> "Run":
    import asyncio
    from functools import partial

    from tandem.bench.run import run
    from tandem.cli import results
    from tandem.router.listener import open_files

    open_files()
    with results.Watching(plan) as watch, asyncio.Runner(loop_factory=results.event_loop) as runner:
        return runner.run(results.until_interrupted(partial(run, plan, watch)))


def _tell(found: "Run", json_file: Path | None, html_file: Path | None, *, check: bool) -> None:
    """Show what was found, write it where that was asked for, and end with the exit code that says how it went."""
    import json

    from tandem.bench import page, report, targets
    from tandem.cli import results

    built = report.build(found)
    results.show(built, check=check)
    if json_file is not None:
        _write(json_file, json.dumps(built, indent=1) + "\n")
    if html_file is not None:
        _write(html_file, page.render(built))
    if found.cut:
        raise typer.Exit(130)
    if check and not targets.passed(report.verdicts(found)):
        raise typer.Exit(1)


def _write(file: Path, text: str) -> None:
    from tandem.errors import SetupError

    try:
        file.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise SetupError(f"{file} cannot be written: {exc.strerror}") from exc


def _check_scenario(ctx: typer.Context, scenario: str | None) -> None:
    """Refuse a scenario that there is none of, and options that it does not heed."""
    from tandem.bench.scenarios import DEFAULT, SCENARIOS
    from tandem.errors import SettingsError

    if scenario is not None and scenario not in SCENARIOS:
        raise SettingsError(f"there is no scenario {scenario}", f"Choose one of {', '.join(SCENARIOS)}")
    given = [name for name, value in ctx.params.items() if value is not None and _is_given(ctx, name)]
    asked = {scenario} if scenario else set(DEFAULT)
    for name in given:
        heeding = _HEEDED_BY.get(name, SCENARIOS)
        if asked.isdisjoint(heeding):
            without = scenario or "a run without a scenario"
            raise SettingsError(f"{_flag(name)} does nothing for {without}", f"It is for {_listed(heeding)}")
    if "rate" in given and "clients" in given:
        raise SettingsError("--rate and --clients are two kinds of load", "Give one: requests/s, or users who wait")
    if "vs_model" in given and "vs" not in given:
        raise SettingsError("--vs-model names a model of another service", "Name that with --vs")


def _check_numbers(ctx: typer.Context) -> None:
    """Refuse what is no number of seconds, hours or requests, which its type lets pass: inf, and 0 where none is."""
    from math import inf

    from tandem.errors import SettingsError

    for name, value in ctx.params.items():
        least = -inf if name == "warm_up" else 0
        if isinstance(value, float) and not least < value < inf:
            raise SettingsError(f"{_flag(name)} {value:g} is no number above 0")


def _check_key(key: str | None) -> None:
    from tandem.errors import SettingsError

    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise SettingsError("the API key holds a character that no key has, such as a space or a line's end", "Mend it")


def _check_pid(pid: int | None) -> None:
    from tandem.bench import memory
    from tandem.errors import SettingsError

    if pid is not None and memory.resident([pid]) is None:
        raise SettingsError(f"--pid {pid}: there is no such process here whose memory can be seen", "Name another")


def _check_files(files: Sequence[Path]) -> None:
    """Refuse reports that have no place, before hours are spent on them."""
    import os

    from tandem.errors import SettingsError

    if len({file.absolute() for file in files}) < len(files):
        raise SettingsError(f"--json and --html both name {files[0]}", "Name two files")
    for file in files:
        folder = file.absolute().parent
        if file.is_dir():
            raise SettingsError(f"{file} cannot be written: it is a folder", "Name a file in it")
        if not folder.is_dir():
            raise SettingsError(f"{file} cannot be written: there is no folder {folder}")
        if not os.access(file if file.exists() else folder, os.W_OK):
            raise SettingsError(f"{file} cannot be written: permission denied")


def _is_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _listed(scenarios: Collection[str]) -> str:
    *most, last = scenarios
    return f"{', '.join(most)} and {last}" if most else last
