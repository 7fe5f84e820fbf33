"""An account with hostile mail, mailbox names and dates.

The order is fixed, and cases that a test looks up have fixed ids.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

from .account import Account, NewEmail
from .blobs import BlobScheme
from .compose import Attachment, noise

MAILBOX_NAMES = (
    *("a/b", "/", "..", ".", "", " ", "   ", "~", "con", "nul.txt"),
    *("a\x00b", "a\nb", "tab\there", "\x1b[31mred\x1b[0m", "\x7f", "back\\slash"),
    *("\u202egnp.exe", "\u200f\u200e", "zero\u200bwidth", "\ufeffmark", "\u2028line"),
    *("x" * 300, "é" * 300, "😀" * 100, "e" + "\u0301" * 200),
    *("-rf", "--help", "-", ".hidden", ".jmapfs.json", ".Trash-1000", "lost+found"),
    *(unicodedata.normalize("NFC", "Café"), unicodedata.normalize("NFD", "Café")),
    *("Case", "case", "CASE", "straße", "STRASSE", "İstanbul", "istanbul"),
    *("twin", "twin", "twin", "trailing.", "trailing...", "trailing ", "trailing", " leading"),
    *("$(rm -rf ~)", "`id`", "a;b|c&d", "*", "?", "[a-z]", "!history", "'single'", '"double"'),
    *("20240301-101500_x_y_abcdefgh.eml", "mail.eml", "%2e%2e%2f", "a:b", "<>", "#x", "日本語"),
    *("\ud7ff", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "العربية", "ﬁle"),
)

SUBJECTS = (
    *("../../etc/passwd", "/etc/passwd", "..", ".", "$(rm -rf ~)", "`reboot`", "-rf", "--", "*"),
    *("'; DROP TABLE mail; --", '"quoted"', "a\\b", "%s%n%x", "${HOME}", "~root", "!!", "#"),
    *("\x1b[2J\x1b[31mred", "bell\x07", "null\x00byte", "line\nbreak", "car\rriage", "\ttab\t"),
    *("שלום עולם", "مرحبا بالعالم", "\u202etxt.exe", "\u2066isolate\u2069", "\u200b", "\ufeff"),
    *("😀👨‍👩‍👧🏳️‍🌈", "Ünïcödé", "한국어 제목", "ไทย", "e" + "\u0301" * 300, "ſtraße", "\u00ad"),
    *("s" * 1000, "長" * 400, "word " * 400, "." * 300, " ", "\u3000", "_", "-", "con.eml"),
    *("20240301-101500_x_y_abcdefgh.eml", ".jmapfs.json", "name.eml", "a_b_c_d", "<script>"),
)

_DATES = (
    *("0001-01-01T00:00:00Z", "1901-12-13T20:45:51Z", "1969-12-31T23:59:59Z"),
    *("1970-01-01T00:00:00Z", "1970-01-01T00:00:01Z", "2000-02-29T12:00:00Z"),
    *("2038-01-19T03:14:08Z", "2106-02-07T06:28:16Z", "2446-05-10T22:38:56Z"),
    "9999-12-31T23:59:59Z",
)


def hostile_account(account_id: str = "Aprimary", *, blob_scheme: BlobScheme = "plain") -> Account:
    """Return the account; its mailbox `Inbox` has an email of each kind."""
    account = Account(account_id, "mallory@example.org", blob_scheme=blob_scheme)
    inbox = account.create_mailbox("Inbox", role="inbox", mailbox_id="Pinbox")
    emails = [
        NewEmail(raw, (inbox,), (), f"2024-03-01T10:{n // 60 % 60:02}:{n % 60:02}Z", f"Mraw{n}")
        for n, raw in enumerate(raw_messages())
    ]
    plain = _message("From: d@example.org", "Subject: a date")
    for number, date in enumerate(_DATES):
        emails.append(NewEmail(plain + date.encode(), (inbox,), (), date, f"Mdate{number}"))
    for number in range(12):
        # The same time, sender and subject: only the bytes differ.
        body = plain + b"x" * number
        emails.append(NewEmail(body, (inbox,), (), "2024-05-05T05:05:05Z", f"Msame{number}"))
    twin = _message("From: t@example.org", "Subject: the same twice")
    emails += [
        NewEmail(twin, (inbox,), (), "2024-06-06T06:06:06Z", email_id)
        for email_id in ("Mtwin1", "Mtwin2", "Mtwin3")
    ]
    emails.append(NewEmail(twin, (inbox,), (), "2024-06-07T06:06:06Z", "Mtwin4later"))
    # Ids that differ only in case are different ids (RFC 8620 §1.2).
    emails += [
        NewEmail(plain + email_id.encode(), (inbox,), (), _DATES[5], email_id)
        for email_id in ("Mcase", "MCASE")
    ]
    boxes = _mailboxes(account, inbox)
    everywhere = (inbox, *boxes)
    emails.append(NewEmail(plain + b"everywhere", everywhere, (), _DATES[5], "Meverywhere"))
    emails.extend(
        NewEmail(plain + box.encode(), (box,), ("$seen",), "2024-07-07T07:07:07Z") for box in boxes
    )
    account.add_emails(emails)
    return account


def raw_messages() -> Iterator[bytes]:
    """Yield messages with unusual bytes."""
    for subject in SUBJECTS:
        # The parsers of all servers accept any character in an encoded word.
        word = "".join(f"={byte:02X}" for byte in subject.encode())
        yield _message("From: Eve <eve@example.org>", f"Subject: =?utf-8?Q?{word}?=")
    for charset, text in (
        *(("koi8-r", "Привет"), ("iso-2022-jp", "こんにちは"), ("big5", "你好")),
        *(("windows-1252", "naïve €"), ("gb18030", "汉字"), ("shift_jis", "ソ表"), ("utf-7", "ü")),
    ):
        coded = "".join(f"={byte:02X}" for byte in text.encode(charset))
        yield _message("From: c@example.org", f"Subject: =?{charset}?Q?{coded}?=")
        yield b"From: c@example.org\r\nSubject: " + text.encode(charset) + b"\r\n\r\nraw\r\n"
    for subject in (
        *("=?utf-8?Q?half", "=?no-such-charset?B?aGk=?=", "=?utf-8?B?!!!?=", "=??Q??="),
        *("=?utf-8?Q?=ff=fe?=", "=?utf-8?X?abc?=", "=?utf-8?B?w6?=", "=?utf-8?Q?=ED=A0=80?="),
    ):
        yield _message("From: b@example.org", f"Subject: {subject}")
    for sender in (
        *("", "nobody", "<>", "@", "a@b@c", "Name without address", '"unclosed <x@example.org>'),
        *("group: a@example.org, b@example.org;", "undisclosed-recipients:;", "../x <../../y@z>"),
        *("=?utf-8?B?8J+YgA==?= <smile@example.org>", "\x1b[31m <esc@example.org>", "a" * 2000),
        *("-rf <-rf@example.org>", "x <x@[127.0.0.1]>", "(comment) <c@example.org>", ",,,"),
    ):
        yield _message(f"From: {sender}", "Subject: an unusual sender")
    yield _message("Subject: no From")
    yield _message("From: n@example.org")
    yield _message("From: a@example.org", "From: b@example.org", "Subject: one", "Subject: two")
    yield _message("From: d@example.org", "Subject: bad date", "Date: yesterday at noon")
    yield _message("From: d@example.org", "Subject: worse date", "Date: Mon, 99 Foo 99999")
    yield b""
    yield b"\n"
    yield b"\r\n\r\n"
    yield b"\r\nno header at all\r\n"
    yield b"\x00"
    yield b"just text, and no header"
    yield b"From: l@example.org\nSubject: bare LF\n\nline\nline\n"
    yield b"From: l@example.org\rSubject: bare CR\r\rline\r"
    yield b"From: l@example.org\r\nSubject: mixed\n\r\nline\r\nline\n\rline"
    yield b"From: z@example.org\r\nSubject: NUL in\x00 it\r\n\r\n\x00\x00body\x00"
    yield b"From: e@example.org\r\nSubject: empty body\r\n\r\n"
    yield b"From: e@example.org\r\nSubject: no empty line"
    yield b"From \tmbox@example.org Mon Jan  1 00:00:00 2024\nFrom: m@example.org\n\n>From here\n"
    yield b": empty name\r\n continued\r\n\r\nbody"
    yield b"From: f@example.org\r\nSubject: folded\r\n \r\n\tover\r\n  lines\r\n\r\nbody\r\n"
    yield b"Subject: " + b"x" * 100_000 + b"\r\n\r\nlong line\r\n"
    yield b"From: b@example.org\r\nSubject: binary\r\n\r\n" + bytes(range(256)) * 40
    yield b"From: l@example.org\r\nSubject: large\r\n\r\n" + noise("large", 1_000_000)
    yield b"".join(b"X-%d: y\r\n" % number for number in range(3000)) + b"\r\nmany\r\n"
    attached = Attachment("../../x.sh", "text/x-sh", b"#!/bin/sh\n")
    yield _message(
        "From: a@example.org",
        "Subject: attachment",
        f'Content-Disposition: attachment; filename="{attached.name}"',
    )


def _mailboxes(account: Account, inbox: str) -> list[str]:
    created = [
        account.create_mailbox(name, mailbox_id=f"Pname{number}")
        for number, name in enumerate(MAILBOX_NAMES)
    ]
    created += [
        account.create_mailbox(name, inbox, mailbox_id=f"Pbelow{number}")
        for number, name in enumerate(("..", "twin", "twin", "Twin", "a/b", ""))
    ]
    created.append(account.create_mailbox("orphan", "Pnowhere", mailbox_id="Porphan"))
    created.append(account.create_mailbox("below the orphan", "Porphan", mailbox_id="Porphan2"))
    created.append(account.create_mailbox("its own parent", "Pself", mailbox_id="Pself"))
    created.append(account.create_mailbox("cycle one", "Pcycle2", mailbox_id="Pcycle1"))
    created.append(account.create_mailbox("cycle two", "Pcycle1", mailbox_id="Pcycle2"))
    created.append(account.create_mailbox("below the cycle", "Pcycle1", mailbox_id="Pcycle3"))
    created.append(account.create_mailbox("second inbox", role="inbox", mailbox_id="Pinbox2"))
    created.append(
        account.create_mailbox(
            "unsubscribed", mailbox_id="Phidden", is_subscribed=False, may_read_items=False
        )
    )
    parent = inbox
    for depth in range(40):
        parent = account.create_mailbox(f"deep {depth}", parent, mailbox_id=f"Pdeep{depth}")
        created.append(parent)
    return created


def _message(*header: str) -> bytes:
    lines = [*header, "Content-Type: text/plain; charset=utf-8", "", "body", ""]
    return "\r\n".join(lines).encode()
