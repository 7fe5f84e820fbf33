"""Modified UTF-7, with the examples of RFC 3501."""

from __future__ import annotations

import pytest

from tests.mail_server import utf7


@pytest.mark.parametrize(
    ("name", "encoded"),
    [
        ("INBOX", b"INBOX"),
        ("~peter/mail/台北/日本語", b"~peter/mail/&U,BTFw-/&ZeVnLIqe-"),
        ("Été", b"&AMk-t&AOk-"),
        ("Q & A", b"Q &- A"),
        ("a\tb", b"a&AAk-b"),
        ("\U0001f600", b"&2D3eAA-"),
    ],
)
def test_examples_of_the_rfc(name: str, encoded: bytes) -> None:
    assert utf7.encode(name) == encoded


def test_quotes_and_backslashes_are_escaped() -> None:
    assert utf7.quote('a"b\\c') == '"a\\"b\\\\c"'
