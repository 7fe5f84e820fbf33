"""The sample account of the demo: ten years of one person's mail, the same in every run.

It has about 400 mails: conversations, mailing lists and receipts, mail in two or three mailboxes,
old charsets, attachments and a few malformed messages.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from .account import Account, NewEmail
from .blobs import BlobScheme
from .compose import Attachment, Person, compose, noise
from .conversations import ALICE, LISTS, PEOPLE, RECEIPTS, TALKS, Talk
from .model import utc_date

FIRST_YEAR, LAST_YEAR = 2016, 2025
_ROLES = {"Inbox", "Sent", "Drafts", "Archive", "Junk", "Trash"}
_CHARSETS = {"olga": "koi8-r", "yuki": "iso-2022-jp", "daniel": "windows-1252"}
_PDF = Attachment("ticket.pdf", "application/pdf", b"%PDF-1.4\n" + noise("ticket", 40_000))
_CSV = Attachment("totals.csv", "text/csv", b"quarter,total\r\nQ1,120\r\nQ2,134\r\n")


def sample_account(account_id: str = "Aprimary", *, blob_scheme: BlobScheme = "plain") -> Account:
    """Return Alice's account."""
    account = Account(account_id, "alice@example.org", blob_scheme=blob_scheme)
    folders = _Folders(account)
    for path in ("Inbox", "Sent", "Drafts", "Archive", "Junk", "Trash"):
        folders[path]
    emails = [*_talks(folders), *_lists(folders), *_receipts(folders), *_oddities(folders)]
    emails.sort(key=lambda email: email.received_at)
    account.add_emails(emails)
    return account


def shared_account(*, blob_scheme: BlobScheme = "plain") -> Account:
    """Return a small account that is shared with Alice."""
    account = Account(
        "Ateam", "team@example.org", is_personal=False, is_read_only=True, blob_scheme=blob_scheme
    )
    inbox = account.create_mailbox("Inbox", role="inbox")
    rota = account.create_mailbox("Rota", inbox)
    for number, who in enumerate(("bob", "priya", "farid", "emma") * 3):
        sent = datetime(2025, 1, 6, 8, 0, tzinfo=UTC) + timedelta(weeks=number)
        raw = compose(
            PEOPLE[who],
            [Person("Team", "team@example.org")],
            f"On call in week {number + 2}",
            sent,
            "It is me this week.\n",
            message_id=f"rota-{number}@example.org",
        )
        account.add_email(raw, [inbox, rota] if number % 3 == 0 else [rota], ["$seen"], sent)
    return account


class _Folders:
    """Mailbox ids by path; a mailbox is created at its first use."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._ids: dict[str, str] = {}

    def __getitem__(self, path: str) -> str:
        if path not in self._ids:
            parent, _, name = path.rpartition("/")
            role = name.lower() if path in _ROLES else None
            self._ids[path] = self._account.create_mailbox(
                name, self[parent] if parent else None, role, sort_order=len(self._ids)
            )
        return self._ids[path]


def _talks(folders: _Folders) -> Iterator[NewEmail]:
    number = 0
    for year in range(FIRST_YEAR, LAST_YEAR + 1):
        for which, talk in enumerate(TALKS):
            number += 1
            start = datetime(year, 1, 4, 8, 5, tzinfo=UTC) + timedelta(
                days=(which * 37 + year * 11) % 340, minutes=(number * 97) % 600
            )
            yield from _talk(folders, talk, number, start)


def _talk(folders: _Folders, talk: Talk, number: int, start: datetime) -> Iterator[NewEmail]:
    topic = talk.topics[number % len(talk.topics)]
    subject = talk.subject.format(topic)
    others = list(dict.fromkeys(who for who, _ in talk.turns if who != "alice"))
    references: list[str] = []
    moment = start
    for turn, (who, text) in enumerate(talk.turns):
        mine = who == "alice"
        message_id = f"{number}.{turn}@{'example.org' if mine else 'mail.example'}"
        attachments = []
        if "attached" in text:
            attachments.append(_PDF)
        elif number % 10 == 1 and turn == 0:
            attachments.append(_CSV)
        elif talk.folder == "Friends" and who == "yuki" and start.year % 4 == 0:
            photo = noise(f"photo {number}", 700_000)
            attachments.append(Attachment("photo.jpg", "image/jpeg", b"\xff\xd8\xff" + photo))
        raw = compose(
            ALICE if mine else PEOPLE[who],
            [PEOPLE[each] for each in others] if mine else [ALICE],
            subject if turn == 0 else f"Re: {subject}",
            moment,
            text.format(topic),
            message_id=message_id,
            references=references,
            attachments=attachments,
            charset=_CHARSETS.get(who, "utf-8"),
        )
        boxes = _boxes_for(talk, moment, mine=mine)
        recent = moment.year == LAST_YEAR and not mine and number % 3 == 0
        keywords = {"$seen"} if not recent else set()
        if turn + 1 < len(talk.turns) and not mine:
            keywords.add("$answered")
        if number % 17 == 0:
            keywords.add("$flagged")
        yield NewEmail(
            raw, tuple(folders[box] for box in boxes), tuple(sorted(keywords)), utc_date(moment)
        )
        references.append(message_id)
        moment += timedelta(minutes=13 + (number * 29 + turn * 71) % 500)


def _boxes_for(talk: Talk, moment: datetime, *, mine: bool) -> list[str]:
    archive = f"Archive/{moment.year}"
    if mine:
        return ["Sent"] if moment.year == LAST_YEAR else ["Sent", archive]
    if moment.year == LAST_YEAR:
        return ["Inbox"] if talk.folder == "Inbox" else [talk.folder, "Inbox"]
    boxes = [archive] if talk.folder == "Inbox" else [talk.folder, archive]
    if talk.label is not None and moment.year % 2:
        boxes.append(talk.label)
    return boxes


def _lists(folders: _Folders) -> Iterator[NewEmail]:
    writers = [PEOPLE[who] for who in ("bob", "emma", "farid", "sven", "priya")]
    for index, (folder, address, subjects) in enumerate(LISTS):
        for number in range(50):
            sent = datetime(2021, 1, 1, 6, tzinfo=UTC) + timedelta(days=number * 31 + index * 5)
            name = folder.rpartition("/")[2]
            raw = compose(
                writers[number % len(writers)],
                [address],
                f"[{name}] {subjects[number % len(subjects)]}",
                sent,
                "Hello all,\n\nmore on this at the next meeting.\n\n-- \nTo leave, do not write.\n",
                message_id=f"list-{index}-{number}@lists.example",
                extra=[f"List-Id: <{address.email.replace('@', '.')}>"],
            )
            yield NewEmail(raw, (folders[folder],), ("$seen",), utc_date(sent))


def _receipts(folders: _Folders) -> Iterator[NewEmail]:
    for number in range(40):
        sender, subject = RECEIPTS[number % len(RECEIPTS)]
        # Several arrive in the same second, as from a nightly job.
        sent = datetime(FIRST_YEAR + number // 4, 11, 30, 3, 0, tzinfo=UTC)
        raw = compose(
            sender,
            [ALICE],
            subject,
            sent,
            f"Number {4711 + number}.\n\nDo not answer this message.\n",
            message_id=f"receipt-{number}@robots.example",
            attachments=[_PDF] if number % 8 == 2 else [],
        )
        yield NewEmail(raw, (folders["Receipts"],), ("$seen",), utc_date(sent))


def _oddities(folders: _Folders) -> Iterator[NewEmail]:
    """Yield unusual but harmless messages."""
    start = datetime(2025, 10, 1, 9, 0, tzinfo=UTC)
    subjects = (
        "",
        "../../etc/passwd",
        "WIN $(a prize) NOW!!! *** `click` ***",
        "-rf",
        "Fwd: Re: AW: Fwd: " + "the long story of a very long subject " * 9,
        "שלום עולם",
        "🎉🎉🎉 Congratulations 🎉🎉🎉",
        "invoice\u202efdp.exe",
    )
    sender = Person("Prize Department", "win@prizes.example")
    for number, subject in enumerate(subjects):
        sent = start + timedelta(days=number)
        raw = compose(
            sender, [ALICE], subject, sent, "Hm.\n", message_id=f"odd-{number}@prizes.example"
        )
        yield NewEmail(raw, (folders["Junk"],), ("$junk",), utc_date(sent))
    for number, raw in enumerate(
        (
            b"From: scanner@office.example\nTo: alice@example.org\n\nScan, page 1\n",
            "From: Jürgen <j@example.de>\r\nSubject: Grüße, roh\r\n\r\nHallo\r\n".encode("latin-1"),
            b"From: wang@example.tw\r\nSubject: =?big5?B?p0GmbqFB?=\r\n\r\n\r\n",
            b"From: broken@example.net\r\nSubject: =?utf-8?Q?half_a_wo\r\n\r\nOops\r\n",
        )
    ):
        yield NewEmail(
            raw, (folders["Inbox"],), (), utc_date(start + timedelta(days=30, hours=number))
        )
    draft = compose(
        ALICE,
        [PEOPLE["bob"]],
        "Draft: holiday",
        start,
        "Dear Bob,\n\n",
        message_id="d1@example.org",
    )
    yield NewEmail(draft, (folders["Drafts"],), ("$draft", "$seen"), utc_date(start))
    bin_raw = compose(
        sender, [ALICE], "Old news", start, "Gone soon.\n", message_id="t1@prizes.example"
    )
    yield NewEmail(bin_raw, (folders["Trash"],), ("$seen",), utc_date(start))
