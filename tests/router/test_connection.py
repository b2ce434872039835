"""A body that comes in chunks is read whole, however it is cut on its way."""

import asyncio
import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tandem.router.connection import Connection
from tandem.router.outbox import Outbox

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNK = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.sampled_from([b"\r\n", b"2\r\n", b"a", b"\n", b"2\r\nab\r\n", b"0\r\n\r\n", b"x" * 300]),
)
SIZE = st.sampled_from([b"%x\r\n", b"%x\r\n", b"%x\r\n", b"%X\r\n", b"0%x\r\n", b"%x;a=b\r\n"])


class Wire:
    """A transport on which all that is written is lost."""

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        pass

    def abort(self) -> None:
        pass


async def bodies(came: list[bytes]) -> tuple[bytes, bytes, bool]:
    """The body that came after the head, read as it came and then in whole, and whether the connection is fit for more.

    On one connection, which has one parser.
    """
    connection = Connection()
    wire: Any = Wire()
    connection.connection_made(wire)

    def ask(most: int | None) -> asyncio.Task[Any]:
        connection.prepare(most, None, None)
        return asyncio.create_task(connection.exchange(Outbox(), b"GET / HTTP/1.1\r\n\r\n"))

    asking = ask(None)
    await asyncio.sleep(0)
    connection.data_received(HEAD)
    await asking
    parts: list[bytes] = []
    feeding = asyncio.create_task(connection.feed(parts.append))
    await asyncio.sleep(0)
    for part in came:
        connection.data_received(part)
    await asyncio.wait_for(feeding, 1)
    asking = ask(10_000)
    await asyncio.sleep(0)
    for part in (HEAD, *came):
        assert not asking.done()
        connection.data_received(part)
    await asyncio.wait_for(asking, 1)
    return b"".join(parts), await connection.chunk(), connection.reusable


@given(st.lists(st.tuples(CHUNK, SIZE), max_size=12), st.data())
def test_chunks_cut_anywhere(chunks: list[tuple[bytes, bytes]], data: st.DataObject) -> None:
    sent = [size % len(chunk) + chunk + b"\r\n" for chunk, size in chunks] + [b"0\r\n\r\n"]
    ends = [sum(map(len, sent[:number])) for number in range(1, len(sent))]
    message = b"".join(sent)
    # Between chunks most of all, where a read is taken for a whole one.
    cut = data.draw(st.sets(st.one_of(st.integers(1, len(message)), st.sampled_from(ends or [1]))))
    places = [0, *sorted(cut | set(data.draw(st.sampled_from([ends, []])))), len(message)]
    came = [message[start:end] for start, end in itertools.pairwise(places) if end > start]
    body = b"".join(chunk for chunk, _ in chunks)
    assert asyncio.run(bodies(came)) == (body, body, True)
