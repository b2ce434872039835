"""The command line. Each command is a file of its own, and imports what it needs when it runs: help is instant."""

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tandem import __version__
from tandem.cli import (
    bench,
    compose,
    doctor,
    embed,
    install,
    logs,
    plan,
    reload,
    restart,
    router,
    serve,
    status,
    stop,
    systemd,
    up,
)


class _Commands(TyperGroup):
    """Prints the errors that Tandem raises on purpose as one line, and ends with their exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as exc:
            if exc.name is None or exc.name.partition(".")[0] == "tandem":
                raise
            cause = f"this command needs {exc.name}, which the server extra brings"
            _fail(f'{cause}. Run `pip install "vllm-tandem[server]"`')
        except Exception as exc:
            from tandem.errors import SetupError

            if not isinstance(exc, SetupError):
                raise
            _fail(str(exc), exc.exit_code)


def _fail(message: str, code: int = 1) -> None:
    typer.secho(f"error: {message}", err=True, fg=typer.colors.RED)
    raise typer.Exit(code)


app = typer.Typer(
    name="tandem",
    cls=_Commands,
    help="An embedding model and a language model side by side, behind one OpenAI-compatible address, kept up.",
    no_args_is_help=True,
    # Rich's help pages take longer to appear (benchmarks/startup.py).
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.command("install")(install.install)
app.command("up")(up.up)
app.command("serve")(serve.serve)
app.command("router")(router.router)
app.command("plan")(plan.plan)
app.command("status")(status.status)
app.command("logs")(logs.logs)
app.command("restart")(restart.restart)
app.command("reload")(reload.reload)
app.command("stop")(stop.stop)
app.command("doctor")(doctor.doctor)
app.command("systemd")(systemd.systemd)
app.command("compose")(compose.compose)
app.command("embed")(embed.embed)
app.command("bench")(bench.bench)


def main() -> None:
    """The console script."""
    app(prog_name="tandem", args=sys.argv[1:])
