"""Mail for tests: real messages, if the corpus is available, and generated hostile ones.

The corpus is an mboxrd file at the path in JMAPFS_CORPUS, by default in `../shared/corpus` next to
the checkout. Without it, generated messages replace the real ones, so that no test is skipped. The
messages are the same in every run.

All have CRLF line ends. Cyrus accepts all of them: it refuses NUL, bare LF and a message that does
not begin with a header.
"""

from __future__ import annotations

import base64
import functools
import itertools
import lzma
import os
import random
import re
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

_DEFAULT_PATH = Path(__file__).parents[2] / "shared/corpus/easy-ham-2.mboxrd.xz"
_BIG = 2**20

_SEPARATOR = re.compile(rb"^From .*\n", re.MULTILINE)
_QUOTED = re.compile(rb"^>(>*From )", re.MULTILINE)
_MESSAGE_ID = re.compile(rb"^Message-ID:.*?\r\n(?![ \t])", re.MULTILINE | re.DOTALL | re.IGNORECASE)


def corpus_path() -> Path | None:
    """Return the path of the real mail, if it exists."""
    path = Path(os.environ.get("JMAPFS_CORPUS") or _DEFAULT_PATH)
    return path if path.is_file() else None


@functools.cache
def real_mails() -> tuple[bytes, ...]:
    """Return the real messages, none if the corpus is missing."""
    if (path := corpus_path()) is None:
        return ()
    mbox = lzma.decompress(path.read_bytes())
    # The empty line before a separator belongs to the mailbox, not to the message.
    messages = (part.removesuffix(b"\n") for part in _SEPARATOR.split(mbox)[1:])
    return tuple(_QUOTED.sub(rb"\1", one).replace(b"\n", b"\r\n") for one in messages)


@functools.cache
def plain_mails() -> tuple[bytes, ...]:
    """Return generated messages instead of real ones: threads on a mailing list."""
    chance = random.Random(20020821)
    words = ["the", "exmh", "razor", "folder", "spam", "patch", "kernel", "über", "naïve", "fails"]
    mails = []
    for number in range(500):
        subject = " ".join(chance.choices(words, k=chance.randint(2, 9)))
        when = datetime(2002, 8, 21, tzinfo=UTC) + timedelta(minutes=17 * number)
        head = (
            f"From: Person {number % 40} <person{number % 40}@example.org>\r\n"
            f"To: list@example.org\r\nDate: {format_datetime(when)}\r\n"
            f"Message-ID: <{number}@example.org>\r\n"
            f"Subject: =?utf-8?B?{base64.b64encode(subject.encode()).decode()}?=\r\n"
        )
        if number % 3:
            head += f"In-Reply-To: <{number - 1}@example.org>\r\n"
        lines = (" ".join(chance.choices(words, k=12)) for _ in range(chance.randint(1, 200)))
        body = "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n"
        mails.append((head + body + "\r\n".join(lines) + "\r\n").encode())
    return tuple(mails)


@functools.cache
def hostile_mails() -> tuple[bytes, ...]:
    """Return small hostile messages, each of which violates a common assumption."""
    text = b"Content-Type: text/plain; charset="
    mails = [
        b"\r\n",
        b"\r\nno header, only a body\r\n",
        b"Subject: only a header\r\n",
        b"Subject: no end of line\r\n\r\nthe last line goes on",
        b"Subject: a bare CR\r\n\r\nbare \r in a line\r\n",
        b"From nobody Thu Jan  1 00:00:00 1970\r\nSubject: begins as in an mbox\r\n\r\nFrom me\r\n",
        b" begins with a folded line\r\nSubject: folded\r\n\r\nx\r\n",
        b"X" * 5000 + b": a very long field name\r\n\r\nx\r\n",
        b"Subject: " + b"long " * 4000 + b"\r\n\r\nx\r\n",
        b"Subject: a long line\r\n\r\n" + b"y" * 200_000 + b"\r\n",
        b"Subject: caf\xe9 \xff\xfe\r\nFrom: J\xfcrgen <j@example.org>\r\n\r\n8-bit \x80\x81\r\n",
        "Subject: Été 日本 \U0001f600\r\nFrom: Żółw <z@example.org>\r\n\r\nraw UTF-8\r\n".encode(),
        b"\x80\x81\xff: 8-bit field name\r\n\r\n\x80\r\n",
        b"Date: Thu, 99 Foo 20002 25:61:61 +9999\r\nSubject: no such date\r\n\r\nx\r\n",
        b"Date:\r\nSubject:\r\nFrom:\r\nMessage-ID:\r\n\r\nempty fields\r\n",
        b"Date: Fri, 31 Dec 1869 23:59:59 -0000\r\nSubject: before 1970\r\n\r\nx\r\n",
        b"Date: Fri, 31 Dec 9999 23:59:59 +0000\r\nSubject: far away\r\n\r\nx\r\n",
        b"Subject: ../../etc/passwd\r\nFrom: $(reboot)`id`;|&*?<> <a@b>\r\n\r\nx\r\n",
        b"Subject: -rf ~ .hidden\r\nFrom: / <@>\r\n\r\nx\r\n",
        b"Subject: =?utf-8?B?AAECAwoNCS8u?= =?utf-8?Q?=E2=80=AEgpj=2Eexe?=\r\n\r\ncontrols\r\n",
        b"Subject: =?x-unknown?Q?=ff?= =?utf-8?B?!!!?= =?utf-8?Q?=ZZ?= =?\r\n\r\nbroken words\r\n",
        b"Subject: =?utf-8?B?"
        + base64.b64encode("\u0065\u0301".encode() * 300)
        + b"?=\r\n\r\nNFD\r\n",
        b"Subject: one\r\nSubject: two\r\nFrom: a@b, c@d\r\nFrom: e@f\r\n\r\ntwice\r\n",
        b"From: undisclosed:;\r\nTo: group: a@b, c@d;\r\nSubject: groups\r\n\r\nx\r\n",
        text + b"x-no-such\r\nSubject: unknown charset\r\n\r\n\xa4\xa5\r\n",
        text + b"utf-16\r\nContent-Transfer-Encoding: base64\r\n\r\n!!not base64!!\r\n",
        text + b"iso-2022-jp\r\nSubject: \x1b$B%F%9%H\x1b(B\r\n\r\n\x1b$B%F%9%H\x1b(B\r\n",
        b"Content-Type: multipart/mixed\r\nSubject: no boundary\r\n\r\n--x\r\n\r\ny\r\n--x--\r\n",
        b'Content-Type: multipart/mixed; boundary="x"\r\nSubject: unclosed\r\n\r\n--x\r\n\r\ny\r\n',
        _nested(30),
    ]
    return tuple(mails)


@functools.cache
def big_mails() -> tuple[bytes, ...]:
    """Return messages of 1 to 6 MB: an attachment in base64."""
    chance = random.Random(6)
    return tuple(
        b"Subject: %d MB\r\nMIME-Version: 1.0\r\n"
        b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n'
        b"--b\r\nContent-Type: application/octet-stream\r\n"
        b"Content-Transfer-Encoding: base64\r\n\r\n%b\r\n--b--\r\n"
        % (size, base64.encodebytes(chance.randbytes(size * 3 * _BIG // 4)).replace(b"\n", b"\r\n"))
        for size in (1, 3, 6)
    )


def all_mails() -> list[bytes]:
    """Return the hostile and the real messages, each once."""
    return list(dict.fromkeys(hostile_mails() + (real_mails() or plain_mails())))


def mails(count: int, *, big: bool = False) -> Iterator[bytes]:
    """Yield `count` different messages: hostile ones, big ones if requested, real ones.

    If there are fewer, the small ones are repeated with another Message-ID and another field.
    """
    small = hostile_mails() + (real_mails() or plain_mails())
    first = hostile_mails() + (big_mails() if big else ()) + small[len(hostile_mails()) :]
    repeated = (varied(mail, n) for n in itertools.count(1) for mail in small)
    return itertools.islice(itertools.chain(first, repeated), count)


def varied(mail: bytes, number: int) -> bytes:
    """Return a variant of `mail`, which has another blob id."""
    head, end, body = mail.partition(b"\r\n\r\n")
    head = _MESSAGE_ID.sub(b"", head + b"\r\n", count=1).removesuffix(b"\r\n")
    fields = b"X-Copy: %d\r\nMessage-ID: <copy-%d-%08x@example.org>\r\n"
    return fields % (number, number, zlib.crc32(mail)) + head + end + body


def _nested(depth: int) -> bytes:
    inner = b"Content-Type: text/plain\r\n\r\ninnermost\r\n"
    for level in range(depth):
        inner = b'Content-Type: multipart/mixed; boundary="%d"\r\n\r\n--%d\r\n%b\r\n--%d--\r\n' % (
            level,
            level,
            inner,
            level,
        )
    return b"Subject: nested\r\nMIME-Version: 1.0\r\n" + inner
