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

# Of a JSON string, what is written like that whoever writes it: of the escapes, those that have but one form.
_PLAIN = rb'(?=[^"])[^"\\\x00-\x1f]*(?:\\["\\bfnrt][^"\\\x00-\x1f]*)*'
_plain = re.compile(_PLAIN).fullmatch
_text = re.compile(rb'"(?:text|content|reasoning|reasoning_content)": ?"(' + _PLAIN + rb')"').search
_MARK = b"<|a text|>"
FIELD = b"data:"  # what an event begins with


class Frame(NamedTuple):
    """What stands before and after the text, theirs and ours; and where that begins and ends in theirs."""

    before: bytes
    after: bytes
    ours_before: bytes
    ours_after: bytes
    start: int
    end: int


class Splicer:
    """Writes one stream's events.

    Args:
        write: an event's data as the engine sent it -> the event as the caller gets it, and what the engine counted.
            What it writes of a text must be that text, and nothing else may depend on it.

    Attributes:
        frame: of the events that are spliced; None where there was none yet.
    """

    def __init__(self, write: Write) -> None:
        self._write = write
        self.frame: Frame | None = None
        self._read = 0  # events

    def chunk(self, event: bytes) -> tuple[bytes, Usage | None]:
        """As ``write`` has it, byte for byte.

        Args:
            event: a whole one, from its field's name to the empty line, both included.

        Raises:
            ApiError: as ``write`` does.
        """
        if (spliced := self.splice(event)) is not None:
            return spliced, None
        self._read += 1
        # Where every event differs in more than its text, few are looked at in vain. If the first was learnt from, the
        # second that is read is no reason to look again: it is the last, which tells why the text has ended.
        if not self._read & (self._read - 1) and (self.frame is None or self._read > 2):
            self._learn(event)
        return self._write(_data(event))

    def splice(self, event: bytes) -> bytes | None:
        """As ``write`` has it, without reading it; None for an event that is like none before."""
        frame = self.frame
        if frame is None or not event.startswith(frame.before) or not event.endswith(frame.after):
            return None
        text = event[frame.start : frame.end]
        if not _plain(text) or not (text.isascii() or _is_utf8(text)):
            return None
        return frame.ours_before + text + frame.ours_after

    def _learn(self, event: bytes) -> None:
        """Find out how events like this one are written: as ``write`` does with one of another text."""
        if (found := _text(event)) is None:
            return
        start, end = found.span(1)
        before, after = event[:start], event[end:]
        try:
            said, usage = self._write(_data(before + _MARK + after))
        except ApiError:
            return
        parts = said.split(_MARK)
        if usage is None and len(parts) == 2:
            self.frame = Frame(before, after, parts[0], parts[1], start, -len(after))


def _data(event: bytes) -> bytes:
    return event[len(FIELD) :].strip()


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
