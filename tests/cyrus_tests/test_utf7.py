"""Modified UTF-7: examples of RFC 3501, and round trips."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cyrus import utf7


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
    assert utf7.decode(encoded) == name


@given(st.text())
def test_decoding_reverses_encoding(name: str) -> None:
    assert utf7.decode(utf7.encode(name)) == name


def test_quotes_and_backslashes_are_escaped() -> None:
    assert utf7.quote('a"b\\c') == '"a\\"b\\\\c"'
