"""Events of a stream that differ from an earlier one in nothing but their text: written without reading them. Pure.

Of most events that an engine sends, all but a few letters is the same as before, and so is all but these in what the
caller gets. What is before and after the text is kept, as the engine writes it and as the caller gets it; an event
that begins and ends like that is the caller's with its own text put between. All others are read, checked and written
anew, which takes several times as long.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from tandem.errors import ApiError
from tandem.models.responses import Usage

Write = Callable[[bytes], tuple[bytes, Usage | None]]

# Of a JSON string, what is written as it is whoever writes it: no quotes, no escapes, no control characters.
_PLAIN = rb'[^"\\\x00-\x1f]+'
_plain = re.compile(_PLAIN).fullmatch
_text = re.compile(rb'"(?:text|content|reasoning|reasoning_content)": ?"(' + _PLAIN + rb')"').search
_MARK = b"<|a text|>"


class _Frame(NamedTuple):
    """What stands before and after the text, theirs and ours."""

    before: bytes
    after: bytes
    ours_before: bytes
    ours_after: bytes


class Splicer:
    """Writes one stream's events.

    Args:
        write: an event as the engine sent it -> as the caller gets it, and what the engine counted. What it writes of a
            text must be that text, and nothing else may depend on it.
    """

    def __init__(self, write: Write) -> None:
        self._write = write
        self._frame: _Frame | None = None
        self._read = 0  # events

    def chunk(self, event: bytes) -> tuple[bytes, Usage | None]:
        """As ``write`` has it, byte for byte.

        Raises:
            ApiError: as ``write`` does.
        """
        frame = self._frame
        if frame is not None and event.startswith(frame.before) and event.endswith(frame.after):
            start, end = len(frame.before), len(event) - len(frame.after)
            if _plain(event, start, end):
                text = event[start:end]
                if text.isascii() or _is_utf8(text):
                    return frame.ours_before + text + frame.ours_after, None
        self._read += 1
        # Where every event differs in more than its text, few are looked at in vain.
        if not self._read & (self._read - 1):
            self._learn(event)
        return self._write(event)

    def _learn(self, event: bytes) -> None:
        """Find out how events like this one are written: as ``write`` does with one of another text."""
        if (found := _text(event)) is None:
            return
        start, end = found.span(1)
        try:
            said, usage = self._write(event[:start] + _MARK + event[end:])
        except ApiError:
            return
        parts = said.split(_MARK)
        if usage is None and len(parts) == 2:
            self._frame = _Frame(event[:start], event[end:], *parts)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
