"""One thing that was looked at, and what came of it."""

from dataclasses import dataclass
from enum import StrEnum

from tandem.errors import SetupError


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"  # it will work, and less well than it could
    PROBLEM = "problem"  # it will not work


@dataclass(frozen=True)
class Finding:
    """What was found of one subject.

    Attributes:
        subject: what was looked at, a word or two.
        level: how bad it is.
        says: what was found, one line.
        mend: what to do about it; empty where all is well.
    """

    subject: str
    level: Level
    says: str
    mend: str = ""


def fine(subject: str, says: str) -> Finding:
    return Finding(subject, Level.OK, says)


def warning(subject: str, says: str, mend: str) -> Finding:
    return Finding(subject, Level.WARNING, says, mend)


def problem(subject: str, says: str, mend: str) -> Finding:
    return Finding(subject, Level.PROBLEM, says, mend)


def refused(subject: str, exc: SetupError) -> Finding:
    """What a start would be refused for."""
    return problem(subject, exc.cause, exc.mend)
