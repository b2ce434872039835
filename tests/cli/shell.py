"""A command as people run it, in this very process."""

from typer.testing import CliRunner

from tandem.cli import app


def run(*arguments: str) -> tuple[int, str]:
    """Exit code and everything printed; what ends a command unforeseen is raised."""
    ran = CliRunner().invoke(app, arguments)
    if ran.exception and not isinstance(ran.exception, SystemExit):
        raise ran.exception
    return ran.exit_code, ran.output
