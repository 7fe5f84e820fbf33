"""Names and inodes: safe for shells and file systems, and the same on every machine."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmapfs.inodes import (
    ROOT_INODE,
    STATUS_FILE_INODE,
    account_numbers,
    directory_inode,
    email_inode,
    inode_range,
    to_account,
    to_mount,
)
from jmapfs.names import email_stem, key, numbered_name, safe_text, sibling_names

ANY_TEXT = st.text(st.characters(codec=None))
SECONDS = st.integers(min_value=-62135596800, max_value=253402300799)

SHELL_SPECIAL = set(" \t\n\r!\"#$%&'()*/:;<=>?[\\]^`{|}~\0")
BIDI = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def assert_safe(name: str) -> None:
    assert name
    assert name not in {".", ".."}
    assert name[0] not in "-."
    assert not set(name) & SHELL_SPECIAL
    assert not set(name) & BIDI
    assert not any(unicodedata.category(character) in {"Cc", "Cs"} for character in name)
    assert unicodedata.is_normalized("NFC", name)
    assert len(name.encode()) <= 255


@given(
    SECONDS,
    st.none() | ANY_TEXT,
    st.none() | ANY_TEXT,
    st.none() | ANY_TEXT,
    ANY_TEXT,
    st.integers(1, 10**6),
)
def test_an_email_has_a_safe_name_whatever_its_headers_contain(
    received_at: int,
    sender_name: str | None,
    sender: str | None,
    subject: str | None,
    blob: str,
    number: int,
) -> None:
    stem = email_stem(
        received_at=received_at, sender_name=sender_name, sender=sender, subject=subject, blob=blob
    )
    name = numbered_name(stem, number)
    assert_safe(name)
    assert re.fullmatch(r"\d{8}-\d{6}_[^_]+_[^_]+_[a-z2-7]{8}(_\d+)?\.eml", name)


@given(SECONDS, SECONDS, ANY_TEXT, ANY_TEXT)
def test_names_sort_by_time_of_receipt(first: int, second: int, one: str, other: str) -> None:
    earlier, later = sorted((first, second))
    if earlier == later:
        later += 1
    names = [
        email_stem(received_at=at, sender_name=text, sender=None, subject=text, blob=text)
        for at, text in ((earlier, one), (later, other))
        if at <= 253402300799
    ]
    assert [name.encode() for name in names] == sorted(name.encode() for name in names)


def test_an_email_has_the_documented_name() -> None:
    stem = email_stem(
        received_at=1709288100,
        sender_name="Alice Ng",
        sender="alice@example.org",
        subject="Quarterly report",
        blob="G0123",
    )
    assert stem == f"20240301-101500_Alice-Ng_Quarterly-report_{key('G0123')}"


def test_missing_parts_are_replaced_by_words() -> None:
    stem = email_stem(received_at=0, sender_name="", sender=None, subject="///", blob="b")
    assert stem == f"19700101-000000_unknown_no-subject_{key('b')}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Été à la plage", "Été-à-la-plage"),
        ("E\u0301te\u0301", "Été"),
        ("../../etc/passwd", "etc-passwd"),
        ("$(rm -rf ~)", "rm-rf"),
        ("--help", "help"),
        ("a\u202etxt.exe", "atxt.exe"),
        ("日本語の件名", "日本語の件名"),
        ("שלום עולם", "שלום-עולם"),
        ("⭐ Star", "⭐-Star"),
        ("\x1b[31mred", "31mred"),
        ("a\u037eb", "a-b"),
        ("\ud800lone", "lone"),
    ],
)
def test_safe_text(text: str, expected: str) -> None:
    assert safe_text(text, limit=100) == expected


@given(ANY_TEXT, st.integers(0, 40))
def test_safe_text_is_cut_between_characters(text: str, limit: int) -> None:
    cut = safe_text(text, limit=limit)
    assert len(cut.encode()) <= limit
    assert safe_text(text, limit=10_000).startswith(cut)


MAILBOX_NAMES = st.dictionaries(
    st.text("abcdef0123456789", min_size=1, max_size=8),
    ANY_TEXT
    | st.sampled_from(["..", ".", "", "a/b", "Inbox", "INBOX", "Été", "Été", "x" * 300, "a.eml"]),
    max_size=12,
)


def test_the_beginning_of_a_long_text_decides() -> None:
    assert safe_text("-" * 4000 + "x", limit=64) == "x"
    assert safe_text("-" * 5000 + "x", limit=64) == ""
    # Normalization would take quadratic time.
    marks = "\u0315\u0300\u05b0\u0301\u0591" * 200_000
    assert safe_text(f"a{marks}b", limit=200) == safe_text(f"a{marks[:30]}", limit=200)
    assert safe_text(f"a{marks[:40]}b{'c' * 300}", limit=40) == safe_text(
        f"a{marks[:30]}b{'c' * 300}", limit=40
    )


@given(MAILBOX_NAMES)
def test_siblings_have_safe_and_different_names(mailboxes: dict[str, str]) -> None:
    names = sibling_names(mailboxes)
    assert names.keys() == mailboxes.keys()
    for name in names.values():
        assert_safe(name)
        assert not name.casefold().endswith(".eml")
    folded = {unicodedata.normalize("NFD", name).casefold() for name in names.values()}
    assert len(folded) == len(names)


@given(MAILBOX_NAMES)
def test_a_mailbox_keeps_its_name_when_ids_change(mailboxes: dict[str, str]) -> None:
    distinct = {name: mailbox_id for mailbox_id, name in mailboxes.items()}
    before = sibling_names({mailbox_id: name for name, mailbox_id in distinct.items()})
    after = sibling_names({f"new-{mailbox_id}": name for name, mailbox_id in distinct.items()})
    assert {f"new-{mailbox_id}": name for mailbox_id, name in before.items()} == after


def test_only_siblings_with_equal_names_get_a_key() -> None:
    names = sibling_names(
        {"1": "Été", "2": "E\u0301te\u0301", "3": "Work", "4": "same", "5": "same"}
    )
    assert names["3"] == "Work"
    assert len(set(names.values())) == 5
    assert all(names[i].startswith("Été_") for i in "12")
    assert names["4"] == f"same_{key('same' + chr(0) + '4')}"


def test_a_mailbox_named_like_the_suffixed_form_of_another() -> None:
    names = sibling_names({"1": "a", "2": "A", "3": f"a_{key('a')}"})
    assert len({name.casefold() for name in names.values()}) == 3


@given(ANY_TEXT, SECONDS, st.integers(0, 5))
def test_email_inodes_are_in_their_range(blob: str, received_at: int, attempt: int) -> None:
    inode = email_inode(blob, received_at, attempt=attempt)
    assert 1 < inode < 1 << 61
    assert inode in inode_range(received_at)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), ANY_TEXT, ANY_TEXT)
def test_email_inodes_grow_with_time(first: int, second: int, one: str, other: str) -> None:
    if first != second:
        assert (email_inode(one, first) < email_inode(other, second)) == (first < second)


@given(ANY_TEXT)
def test_directory_inodes_have_a_separate_range(path: str) -> None:
    assert 1 << 61 <= directory_inode(path) < 1 << 62


def test_inodes_and_keys_never_change() -> None:
    """A change of these would rename or renumber every mail of every user."""
    assert key("G0123") == "n5jm2ida"
    assert email_inode("G0123", 1709288100) == 917667061120594945
    assert directory_inode("Work/Clients") == 2354170121547513468


@given(st.integers(1, 31), ANY_TEXT, SECONDS)
def test_accounts_have_separate_inodes(number: int, text: str, at: int) -> None:
    for inode in (email_inode(text, at), directory_inode(text), ROOT_INODE, STATUS_FILE_INODE):
        outer = to_mount(number, inode)
        assert 1 < outer < 1 << 62
        assert to_account(outer) == (number, inode)
        assert to_account(inode) == (0, inode) or inode in {ROOT_INODE, STATUS_FILE_INODE}


@given(st.sets(ANY_TEXT, max_size=31))
def test_each_account_has_a_number(account_ids: set[str]) -> None:
    numbers = account_numbers(account_ids)
    assert numbers.keys() == account_ids
    assert len(set(numbers.values())) == len(account_ids)
    assert all(0 < number < 32 for number in numbers.values())


def test_too_many_accounts() -> None:
    with pytest.raises(ValueError, match="31"):
        account_numbers(str(number) for number in range(32))
