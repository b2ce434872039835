"""`tandem bench`: how fast a service is, how that compares with another, and whether its memory stays flat."""

from pathlib import Path
from typing import Annotated

import typer

_DEFAULT_URL = "http://127.0.0.1:8200/v1"


def bench(
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
    encoding_format: Annotated[str | None, typer.Option(help="float or base64.")] = None,
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
        typer.Option(help="Whose memory a soak watches [default: who listens at --url, on this machine]."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="What texts and times are drawn from [default: by chance].")] = None,
) -> None:
    """Measure any OpenAI-compatible service. Ctrl-C ends it with what was measured so far, and exit code 130."""
    import asyncio
    import json
    import math
    import secrets
    from functools import partial

    from tandem.bench import machine, page, report, targets
    from tandem.bench.load import Load
    from tandem.bench.run import Plan, run
    from tandem.bench.scenarios import SCENARIOS, Shape
    from tandem.cli import results
    from tandem.errors import SettingsError

    if scenario is not None and scenario not in SCENARIOS:
        raise SettingsError(f"there is no scenario {scenario}", f"Choose one of {', '.join(SCENARIOS)}")
    soaking = scenario == "soak"
    for option, given in (("--hours", hours), ("--pid", pid)):
        if given is not None and not soaking:
            raise SettingsError(f"{option} is for a soak", f"Run `tandem bench soak {option} {given:g}`")
    for option, named in (("--vs", vs), ("--vs-model", vs_model if not vs else None)):
        if named is not None and (soaking or option != "--vs"):
            raise SettingsError(f"{option} {named} has nothing to compare", "A comparison needs a scenario and --vs")
    for option, number in (("--rate", rate), ("--hours", hours)):
        if number is not None and not 0 < number < math.inf:
            raise SettingsError(f"{option} {number:g} is no number above 0")
    for file in (json_file, html_file):
        if file is not None and not file.absolute().parent.is_dir():
            raise SettingsError(f"{file} cannot be written: there is no folder {file.absolute().parent}")
    plan = Plan(
        scenario=scenario,
        url=url,
        vs=vs,
        key=api_key,
        model=model,
        vs_model=vs_model,
        shape=Shape(texts, words, dimensions, encoding_format, max_tokens),
        load=Load(clients, rate, (hours or 1) * 3600 if soaking else seconds, warm_up, timeout),
        rounds=rounds,
        pid=pid,
        seed=secrets.randbits(32) if seed is None else seed,
    )
    machine.open_files()
    with results.Watching(plan) as watch, asyncio.Runner(loop_factory=results.event_loop) as runner:
        found = runner.run(results.until_interrupted(partial(run, plan, watch)))
    built = report.build(found)
    if json_file is not None:
        json_file.write_text(json.dumps(built, indent=1) + "\n")
    if html_file is not None:
        html_file.write_text(page.render(built), encoding="utf-8")
    results.show(built, check=check)
    if found.cut:
        raise typer.Exit(130)
    if check and not targets.passed(report.verdicts(found)):
        raise typer.Exit(1)
