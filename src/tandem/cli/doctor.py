"""`tandem doctor`: what may keep a service from starting on this machine."""

import typer

from tandem.cli import flags


def doctor(
    run_dir: flags.ItsRunDir = None,
    port: flags.ItsPort = None,
    as_json: flags.Json = False,
) -> None:
    """Check this machine, and say how to mend what is wrong; starts nothing. Exit code 1 when there is a problem."""
    import json
    from dataclasses import asdict

    from rich.console import Console

    from tandem.doctor import checkup
    from tandem.doctor.finding import Level
    from tandem.engines import hardware

    findings = []
    console = Console(highlight=False, soft_wrap=True)
    signs = {Level.OK: "[green]✔[/]", Level.WARNING: "[yellow]![/]", Level.PROBLEM: "[red]✘[/]"}
    with Console(stderr=True).status("Looking …"):
        for finding in checkup.examine({"run_dir": run_dir, "router": {"port": port}}, hardware.detect()):
            findings.append(finding)
            if not as_json:
                console.print(f"{signs[finding.level]} {finding.subject:<16}", end=" ")
                console.print(finding.says, markup=False)
                if finding.mend:
                    console.print(f"{'':19}{finding.mend}", style="dim", markup=False)
    counts = {level: sum(finding.level is level for finding in findings) for level in Level}
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        problems, warnings = counts[Level.PROBLEM], counts[Level.WARNING]
        console.print(f"\n{problems} problem{'s' * (problems != 1)}, {warnings} warning{'s' * (warnings != 1)}.")
    if counts[Level.PROBLEM]:
        raise typer.Exit(1)
