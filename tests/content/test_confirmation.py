"""The rules by which downloaded bytes are accepted."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmapfs.content.confirmation import (
    HEAD_BYTES,
    Evidence,
    Examination,
    Route,
    contradiction,
    doubt,
    has_header_line,
    refusal,
)
from jmapfs.jmap.blob_get import BlobDigest
from jmapfs.jmap.emails import EmailValues
from tests.corpus import hostile_mails, mails
from tests.server.headers import parse_header

_MAIL = b"Message-ID: <one@example.org>\r\nSubject: One\r\n\r\nBody\r\n"


def evidence_of(data: bytes, route: Route = Route.DOWNLOAD, content_type: str = "") -> Evidence:
    examination = Examination(route, message_ids=True, sha1=True, sha256=True)
    # The pieces divide lines.
    for offset in range(0, len(data), 7777):
        examination.update(data[offset : offset + 7777])
    return examination.evidence(content_type=content_type)


def stated_of(data: bytes, *message_ids: str) -> EmailValues:
    return EmailValues("B", len(data), 0, message_ids)


def is_other(data: bytes, *message_ids: str) -> bool:
    """Return whether the message ids contradict the content, in both attempts."""
    stated, evidence = stated_of(data, *message_ids), evidence_of(data)
    first = contradiction(evidence, stated)
    second = refusal(None, evidence, len(data), stated)
    assert first == second
    return first is not None


@dataclass(frozen=True)
class Attempt:
    """One download, and what the server states after it."""

    data: bytes
    route: Route
    content_type: str
    stated_size: int
    message_ids: tuple[str, ...]


_CONTENTS = (
    _MAIL,
    _MAIL.replace(b"one@", b"two@"),
    _MAIL[:-4],
    _MAIL.replace(b"Message-ID", b"X-Other-ID"),
    b"",
    b"<html>".ljust(len(_MAIL)),
    b"x" * len(_MAIL),
)
_attempts = st.builds(
    Attempt,
    st.sampled_from(_CONTENTS),
    st.sampled_from(Route),
    st.sampled_from(["", "text/plain", "text/html"]),
    st.sampled_from([len(_MAIL), len(_MAIL) - 4, 0]),
    st.sampled_from([("one@example.org",), ("two@example.org",), ()]),
)


@given(
    size=st.sampled_from([len(_MAIL), len(_MAIL) - 4, 0]),
    first=_attempts,
    second=_attempts,
    digest_of=st.none() | st.sampled_from(_CONTENTS),
    sha1_of=st.none() | st.sampled_from(_CONTENTS),
)
def test_accepted_content_has_all_the_required_evidence(
    size: int,
    first: Attempt,
    second: Attempt,
    digest_of: bytes | None,
    sha1_of: bytes | None,
) -> None:
    sha1 = None if sha1_of is None else hashlib.sha1(sha1_of, usedforsecurity=False).digest()
    digest = None
    if digest_of is not None:
        digest = BlobDigest("sha-256", hashlib.sha256(digest_of).digest(), None)
    evidence = [
        evidence_of(one.data, one.route, one.content_type if one.route is Route.DOWNLOAD else "")
        for one in (first, second)
    ]
    stated = [EmailValues("B", one.stated_size, 0, one.message_ids) for one in (first, second)]
    first_accepted = doubt(evidence[0], size, sha1) is None and (
        sha1 is not None or contradiction(evidence[0], stated[0]) is None
    )
    second_accepted = (
        refusal(
            evidence[0],
            evidence[1],
            size,
            stated[1],
            sha1=sha1,
            digest=digest,
            repeated=stated[0].size == stated[1].size,
        )
        is None
    )
    if first_accepted:
        assert _is_mail(first, first.stated_size == size) if sha1 is None else first.data == sha1_of
    if second_accepted and sha1 is not None:
        assert second.data == sha1_of
    elif second_accepted and digest is not None:
        assert second.data == digest_of
    elif second_accepted:
        confirmed = (
            first.data == second.data
            and first.route is not second.route
            and first.stated_size == second.stated_size
        )
        assert _is_mail(
            second, has_size=confirmed or len(second.data) == second.stated_size
        ) or _is_mail_without_header(first, second)


def _is_mail(attempt: Attempt, has_size: bool) -> bool:  # noqa: FBT001
    data = attempt.data
    if not data:
        return attempt.stated_size == 0
    is_page = attempt.content_type == "text/html" and attempt.route is Route.DOWNLOAD
    right_id = not attempt.message_ids or attempt.message_ids[0].encode() in data
    return has_size and not is_page and right_id and data in _CONTENTS[:4]


def _is_mail_without_header(first: Attempt, second: Attempt) -> bool:
    return (
        first.data == second.data == _CONTENTS[6]
        and first.stated_size == second.stated_size == len(second.data)
        and second.message_ids == ()
        and not any(
            one.content_type == "text/html" and one.route is Route.DOWNLOAD
            for one in (first, second)
        )
    )


@pytest.mark.parametrize(
    ("header", "stated"),
    [
        ("Message-ID: <a@b>", "a@b"),
        ("MESSAGE-Id :<a@b>", "a@b"),
        ("Message-ID:\r\n <a@b>", "a@b"),
        ("Message-ID: <long\r\n\t@b>", "long@b"),
        ("Message-ID: <long\n @b>", "long@b"),
        ("Message-ID: (comment) <a@b> (comment)", "a@b"),
        ('Message-ID: <"a"@b>', "a@b"),
        ('Message-ID: <"a"@b>', '"a"@b'),
        ("Message-ID: <a@B.Example>", "a@b.example"),
        ("Message-ID: a@b", "<a@b>"[1:-1]),
        ("Message-ID: <a@b>\r\nMessage-ID: <c@d>", "c@d"),
        ("Subject: x\rMessage-ID: <a@b>\r", "a@b"),
    ],
)
@pytest.mark.parametrize("before", ["", "\ufeff", "\r\n", "From bob Mon Jan 1\n"])
def test_a_message_id_is_found_however_it_is_written(header: str, stated: str, before: str) -> None:
    data = f"{before}{header}\r\nSubject: x\r\n\r\nbody".encode()
    assert not is_other(data, stated)
    assert not is_other(data, "else@where", stated)
    assert is_other(data, f"{stated}x")


def test_a_message_id_elsewhere_is_not_that_of_the_mail() -> None:
    reply = b"Message-ID: <reply@b>\r\nIn-Reply-To: <a@b>\r\nReferences: <a@b>\r\n\r\n"
    assert is_other(reply, "a@b")
    assert is_other(reply + b"Message-ID: <a@b>\r\n", "a@b")
    assert is_other(b"Subject: none\r\n\r\nMessage-ID: <a@b>\r\n", "a@b")


@pytest.mark.parametrize("stated", [(), ("an id@b",), ("ü@b",), ("", "a\tb"), ("\ud800@b",)])
def test_only_plain_message_ids_are_compared(stated: tuple[str, ...]) -> None:
    assert not is_other(_MAIL, *stated)


def test_a_header_that_is_not_whole_proves_nothing() -> None:
    long = b"Subject: x\r\n" + b"X-Field: y\r\n" * (HEAD_BYTES // 12)
    assert not is_other(long + b"Message-ID: <a@b>\r\n\r\n", "a@b")
    assert is_other(b"Subject: x\r\n\r\n" + b"x" * HEAD_BYTES, "a@b")


def test_no_real_or_hostile_mail_is_refused_on_an_honest_server() -> None:
    with_ids = 0
    for data in (*mails(200), *hostile_mails()):
        stated = EmailValues("B", len(data), 0, tuple(parse_header(data).message_id or ()))
        with_ids += bool(stated.message_ids)
        evidence = evidence_of(data)
        # Hostile mail that begins with an empty line has no header at all.
        assert (doubt(evidence, len(data), None) is None) != data.startswith(b"\r\n"), data[:100]
        assert contradiction(evidence, stated) is None, data[:500]
        assert refusal(evidence, evidence, len(data), stated, repeated=True) is None
    assert with_ids > 100


def test_content_without_a_header_needs_all_other_evidence() -> None:
    """An error message in plain text looks like such mail."""
    data = b"service unavailable\r\n"
    stated, evidence = stated_of(data), evidence_of(data)

    def reason(
        first: Evidence | None,
        second: Evidence = evidence,
        now: EmailValues = stated,
        *,
        repeated: bool = True,
    ) -> str | None:
        return refusal(first, second, len(data), now, repeated=repeated)

    assert doubt(evidence, len(data), None) is not None
    assert reason(evidence) is None
    refused = [
        reason(None),
        reason(evidence, repeated=False),
        reason(evidence_of(data.replace(b"s", b"S"))),
        reason(evidence, now=stated_of(data + b"."), repeated=True),
        reason(evidence, now=stated_of(data, "an id@of a mail")),
        reason(evidence_of(data, content_type="text/html")),
    ]
    for markup in (b'{"type": "about:blank"}', b"<error/>", b"\xef\xbb\xbf <error/>"):
        other = evidence_of(markup)
        refused.append(refusal(other, other, len(markup), stated_of(markup), repeated=True))
    assert None not in refused


@pytest.mark.parametrize(
    "data",
    [
        b"Subject: x\r\n",
        b"\xef\xbb\xbfSubject: x\r\n",
        b"\r\n\n From: x\n",
        b"From bob Mon\nSubject: x\n",
        b">From bob Mon\nSubject: x\n",
        b"a line that is none\r\nSubject: x\r\n\r\n",
        b"\xff\xfe\r\nSubject : x",
    ],
)
def test_a_header_line_is_found(data: bytes) -> None:
    assert has_header_line(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n\r\n",
        b"Hello",
        b"Bad gateway\r\n\r\nSubject: x\r\n",
        b'{"type": "about:blank",\n"detail": "no"}',
        b"{\ntype: x\n",
        b"<!-- x -->\nbody: x\n",
        b"\0" * 100,
    ],
)
def test_other_content_has_no_header_line(data: bytes) -> None:
    assert not has_header_line(data)
