"""The event stream format: in any pieces, with any line ends, and bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmapfs.errors import ProtocolError
from jmapfs.jmap.push import LARGEST_EVENT, EventDecoder

STREAM = (
    ": here we are\n\n"
    "id: 7\nevent: state\ndata: {\n\n"
    "data:é\ndata: b\nretry: x\nunknown\n\n\n"
    "event:ping\ndata\n\n"
    "data: not whole\n"
)
EVENTS = [("state", "{"), ("message", "é\nb"), ("ping", "")]


def decoded(*chunks: bytes) -> list[tuple[str, str]]:
    decoder = EventDecoder()
    events = [(e.event, e.data) for chunk in chunks for e in decoder.feed(chunk)]
    # After an event with an id, httpx-sse returns an event for each empty line.
    return [event for event in events if event != ("message", "")]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_events_with_any_line_ends_in_any_pieces(end: str, size: int) -> None:
    data = STREAM.replace("\n", end).encode()
    assert decoded(*(data[i : i + size] for i in range(0, len(data), size))) == EVENTS


@given(st.lists(st.text(alphabet="\r\na:", max_size=5)))
def test_pieces_do_not_change_the_events(pieces: list[str]) -> None:
    chunks = [piece.encode() for piece in pieces]
    # A CR at the end may be half of a CRLF; the next piece never changes an event.
    assert decoded(*chunks) == decoded(b"".join(chunks))


def test_invalid_utf8_is_replaced() -> None:
    assert decoded(b"data: \xff\n\n") == [("message", "\ufffd")]


@pytest.mark.parametrize("line", [b"data: x", b": x", b"x", b"data: x\n"])
def test_event_without_end_is_an_error(line: bytes) -> None:
    decoder = EventDecoder()
    piece = line * 1000
    for _ in range(LARGEST_EVENT // len(piece)):
        assert list(decoder.feed(piece)) == []
    with pytest.raises(ProtocolError, match="more than"):
        list(decoder.feed(piece))
    assert len(decoder._pending) < LARGEST_EVENT + 10_000


def test_many_events_in_one_piece_are_accepted() -> None:
    count = LARGEST_EVENT // 4
    assert len(decoded(b"data: x\n\n" * count)) == count
