"""`tandem doctor`: how findings are shown, and with which exit code."""

import json
from collections.abc import Sequence

import pytest
from typer.testing import CliRunner

from tandem.cli import app
from tandem.doctor import checkup
from tandem.doctor.finding import Finding, fine, problem, warning

FINE, WARNING = fine("vLLM", "it is there"), warning("memory", "little", "Free some")
PROBLEM = problem("port 8200", "nginx has it [8200]", "End it")


@pytest.mark.parametrize(
    ("findings", "code", "sum_"),
    [
        ([FINE], 0, "0 problems, 0 warnings."),
        ([FINE, WARNING], 0, "0 problems, 1 warning."),
        ([PROBLEM, FINE], 1, "1 problem, 0 warnings."),
    ],
)
def test_each_finding_is_a_line_with_its_mend(
    findings: Sequence[Finding], code: int, sum_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a problem, unlike a warning, makes it fail."""
    monkeypatch.setattr(checkup, "examine", lambda *_: iter(findings))
    ran = CliRunner().invoke(app, ["doctor"])
    assert ran.exit_code == code
    assert ran.stdout.endswith(f"\n{sum_}\n")
    signs = {"ok": "✔", "warning": "!", "problem": "✘"}
    for finding in findings:
        assert f"{signs[finding.level]} {finding.subject:<16} {finding.says}\n" in ran.stdout
        assert finding.mend in ran.stdout
    told = CliRunner().invoke(app, ["doctor", "--json"])
    assert told.exit_code == code
    assert [finding["level"] for finding in json.loads(told.stdout)] == [finding.level for finding in findings]


def test_wrong_settings_are_a_finding_and_do_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not depend on them is looked at all the same."""
    from tandem.doctor import build
    from tandem.engines.hardware import Hardware

    monkeypatch.setattr(build, "examine", lambda *_: iter([FINE]))
    monkeypatch.setenv("TANDEM_PORT", "many")
    found = list(checkup.examine({}, Hardware((), 2, 2**36, frozenset())))
    assert found[0].subject == "settings"
    assert "TANDEM_PORT" in found[0].says
    assert FINE in found
