"""The mail of the other tests."""

from __future__ import annotations

import pytest

from tests import corpus


def test_mails_are_reproducible_and_distinct() -> None:
    first = list(corpus.mails(4000, big=True))
    assert len(set(first)) == 4000
    assert first == list(corpus.mails(4000, big=True))


def test_line_ends_are_crlf() -> None:
    for mail in corpus.mails(2000, big=True):
        assert mail.count(b"\n") == mail.count(b"\r\n")
        assert b"\0" not in mail


@pytest.mark.parametrize("big", [False, True])
def test_hostile_mails_come_first_and_big_ones_are_optional(*, big: bool) -> None:
    mails = list(corpus.mails(200, big=big))
    assert tuple(mails[: len(corpus.hostile_mails())]) == corpus.hostile_mails()
    assert (max(map(len, mails)) > 4_000_000) == big


def test_generated_mails_replace_a_missing_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JMAPFS_CORPUS", "/nowhere")
    corpus.real_mails.cache_clear()
    try:
        assert corpus.real_mails() == ()
        assert len(set(corpus.mails(3000))) == 3000
    finally:
        corpus.real_mails.cache_clear()


def test_a_variant_changes_only_the_message_id() -> None:
    mail = b"A: 1\r\nMessage-ID: <1@x>\r\n folded\r\nB: 2\r\n\r\nMessage-ID: in the body\r\n"
    varied = corpus.varied(mail, 7)
    assert varied.startswith(b"X-Copy: 7\r\nMessage-ID: <copy-7-")
    assert varied.endswith(b"A: 1\r\nB: 2\r\n\r\nMessage-ID: in the body\r\n")
