"""`tandem embed`: a file of texts in, a file of vectors out."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tandem.client.config import VLLMConfig
    from tandem.client.files import Task

_RETRIES = 20  # an engine that ends is back within a minute; the time-out still bounds how long a request is tried


class Format(StrEnum):
    JSONL = "jsonl"
    CSV = "csv"
    LINES = "lines"
    PARQUET = "parquet"


class Kind(StrEnum):
    DOCUMENT = "document"
    QUERY = "query"


def embed(
    source: Annotated[str, typer.Argument(metavar="IN", help="The file with the texts, or - for standard input.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file for the vectors: .parquet or .npy.")],
    input_format: Annotated[
        Format | None, typer.Option("--format", help="What IN holds [default: what its ending says].")
    ] = None,
    field: Annotated[str | None, typer.Option(help="The field, or column, with the text [default: text].")] = None,
    id_field: Annotated[
        str | None, typer.Option("--id", metavar="FIELD", help="The field with ids [default: rows, counted from 0].")
    ] = None,
    with_text: Annotated[bool, typer.Option("--with-text", help="Write the texts, too (Parquet).")] = False,
    skip_bad: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Pass over rows that cannot be embedded, and list them there.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT, and start over.")] = False,
    model: Annotated[
        str | None, typer.Option(help="The model to ask for [default: VLLM_MODEL, else the embedding engine].")
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(help="The service [default: VLLM_URL, else the one that runs on this machine].")
    ] = None,
    port: Annotated[int | None, typer.Option(help="The service on this port of this machine.")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="The service with this run folder.")] = None,
    kind: Annotated[Kind, typer.Option(help="Which of the model's prefixes to put before each text.")] = Kind.DOCUMENT,
    prefix: Annotated[str | None, typer.Option(help="Put this before each text instead.")] = None,
    normalize: Annotated[bool, typer.Option("--normalize", help="Scale vectors to length 1.")] = False,
    dimensions: Annotated[int | None, typer.Option(min=1, help="Ask the model for shorter vectors.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Texts in a request [default: VLLM_BATCH_SIZE, else 64].")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight.")] = 4,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds for a request [default: VLLM_TIMEOUT_S, else 120].")
    ] = None,
) -> None:
    """Embed the texts of a file. After an interruption, the same command goes on where it stopped."""
    from tandem.client.config import VLLMConfig
    from tandem.client.files import Task

    address, name, weights = _service(base_url, model, port, run_dir)
    given: dict[str, Any] = {
        "base_url": address,
        "model": name,
        f"{kind}_prefix": prefix,
        "dimensions": dimensions,
        "batch_size": batch_size,
        "timeout_s": timeout,
    }
    config = VLLMConfig.from_env(
        **{name: value for name, value in given.items() if value is not None},
        normalize=normalize,
        max_concurrent_requests=concurrency,
        retries=_RETRIES,
    )
    task = Task(
        source=None if source == "-" else Path(source),
        out=out,
        format=input_format.value if input_format else None,
        field=field,
        id=id_field,
        kind=kind.value,
        with_text=with_text,
        skip_bad=skip_bad,
        force=force,
        weights=weights,
    )
    _run(task, config)


def _run(task: "Task", config: "VLLMConfig") -> None:
    """Do it, and say how it goes and how it ended."""
    from rich.console import Console

    from tandem.cli import rows
    from tandem.client.files import embed_file
    from tandem.errors import BadRequestError, ClientError, SetupError

    try:
        with rows.shown(Console(highlight=False)) as watch:
            done = embed_file(task, config, watch)
    except KeyboardInterrupt:
        typer.echo("Interrupted: the same command goes on from there.", err=True)
        raise typer.Exit(130) from None
    except BadRequestError as exc:
        mend = "" if exc.index is None else "Mend it and start over with --force, or go on with --skip-bad FILE"
        raise SetupError(str(exc), mend) from exc
    except ClientError as exc:
        raise SetupError(str(exc), "What is done is kept: the same command goes on from there") from exc
    passed_over = f"; {done.skipped:,} bad rows are in {task.skip_bad}" if done.skipped else ""
    typer.echo(f"{done.rows:,} vectors are in {task.out}{passed_over}.")


def _service(
    base_url: str | None, model: str | None, port: int | None, run_dir: Path | None
) -> tuple[str | None, str | None, str]:
    """Address, the model's name there, and what that name stands for now, where a service of this machine says it.

    Both are None where the environment has them.
    """
    import os

    from tandem.errors import SettingsError

    named = port is not None or run_dir is not None
    if base_url is not None and named:
        raise SettingsError("--base-url and --port or --run-dir name two services", "Leave one out")
    if base_url is None and (named or not os.environ.get("VLLM_URL")):
        return _running(model or os.environ.get("VLLM_MODEL"), port, run_dir)
    if model is None and not os.environ.get("VLLM_MODEL"):
        raise SettingsError("no model is named", "Name one with --model or VLLM_MODEL")
    return base_url, model, ""


def _running(model: str | None, port: int | None, run_dir: Path | None) -> tuple[str, str, str]:
    """The same of a service that runs on this machine; by default, its embedding engine."""
    import asyncio

    from tandem.errors import SettingsError, SetupError

    instead = "Start one with `tandem up`, or name another's address with --base-url and its --model"
    try:
        from tandem.cli import talk
    except ModuleNotFoundError as exc:
        raise SetupError("no service is named, and this installation has none (the server extra)", instead) from exc
    try:
        told = asyncio.run(talk.status(talk.find(run_dir, port)))
    except SetupError as exc:
        raise SetupError(exc.cause, instead) from exc
    engines = {each.name: each for each in told.snapshot.engines if each.kind == "embedding" and not each.replica_of}
    if model is None and len(engines) != 1 and "embedding" not in engines:
        raise SettingsError(
            f"the service at {told.hello.address} has {len(engines) or 'no'} embedding engines",
            "Name a model with --model",
        )
    name = model or ("embedding" if "embedding" in engines else next(iter(engines)))
    known = [each.model for each in engines.values() if name in (each.name, each.model, *each.aliases)]
    return f"{told.hello.address}/v1", name, known[0] if known else name
