from typing import final

@final
class FastPath:
    """Streams that are sent on without Python, each known by the descriptor that it is read from.

    Raises:
        OSError: the kernel gives no more descriptors.
    """

    def add(
        self, source: int, sink: int, before: bytes, after: bytes, ours_before: bytes, ours_after: bytes, /
    ) -> None:
        """Send on what ``source`` has, to ``sink``. Both stay the caller's, and open for as long as the stream is here.

        Args:
            before, after: what stands before and after the text of an event, as it comes.
            ours_before, ours_after: likewise, as it is sent on.

        Raises:
            ValueError: it is read already, or is no descriptor.
            OSError: it is nothing that can be waited for.
        """

    def remove(self, source: int, /) -> tuple[int, float]:
        """Send on no more of it: how many events were, and when the last of them came, by the monotonic clock in
        seconds; 0 if there was none.

        Raises:
            KeyError: it is not read here.
        """

    def heard(self, source: int, /) -> float:
        """When something came from it last, whatever it was, or when it was added.

        Raises:
            KeyError: it is not read here.
        """

    def run(self) -> list[tuple[int, bytes, bytes, int, float]]:
        """Send on what has come, of up to 64 streams up to 16 KiB each; which went no further, and are removed.

        Returns:
            of each, its source, what has come of it and was not sent on, from the beginning of a chunk, what its sink
            did not take, and the two that :meth:`remove` tells.
        """

    def fileno(self) -> int:
        """A descriptor that can be read when :meth:`run` has something to do."""
