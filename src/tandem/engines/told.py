"""What an engine's log has told of its present life: pure, line by line."""

import re
from collections.abc import Reversible
from dataclasses import dataclass, field

from tandem.engines.footprints import Seen, seen_after
from tandem.engines.phases import STARTED, Phase, phase_after, remark

_LINE = 300  # characters of its last line that are told
# Not the line in which vLLM repeats its arguments, of which some are secrets; nor one without words.
_TELLING = re.compile(r"^(?!.*\bargs\b).*\w{2}")


@dataclass(frozen=True)
class Told:
    """What is known of one life of an engine by its log; before its first line as it stands here.

    Attributes:
        phase: what it is doing on its way to being ready.
        remark: what people should still see once it is ready; empty where nothing is.
        seen: what it has said of its memory.
        lines: how many it has logged.
    """

    phase: Phase = STARTED
    remark: str = ""
    seen: Seen = field(default_factory=Seen)
    lines: int = 0

    def after(self, line: str) -> "Told":
        """What is known once ``line`` was logged."""
        return Told(
            phase_after(self.phase, line),
            remark(line) or self.remark,
            seen_after(self.seen, line),
            self.lines + 1,
        )


def last_line(lines: Reversible[str]) -> str:
    """The last of ``lines`` that tells people something, shortened; empty where none does."""
    return next((line for line in reversed(lines) if _TELLING.search(line)), "").strip()[:_LINE]
