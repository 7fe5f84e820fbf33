"""What the directory of a mailbox is called.

A mailbox name is anything at all: Cyrus takes `..` and `.`, others `a/b`. It becomes a safe name,
and siblings that would come out alike (also where case or Unicode form does not count) get a key
at the end. RFC 8621 §2 has no two siblings of the same name, so the key comes from the full name
and survives a change of mailbox ids; only where a server breaks that rule the id decides.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping
from typing import Final

from jmapfs.names.email import SUFFIX
from jmapfs.names.text import KEY_LENGTH, key, safe_text

# With the longest key the name still fits into 255 bytes.
_LIMIT: Final = 180
_KEY_LENGTHS: Final = (KEY_LENGTH, 2 * KEY_LENGTH, 8 * KEY_LENGTH)


def sibling_names(mailboxes: Mapping[str, str]) -> dict[str, str]:
    """Return the directory name of each of the mailboxes that share a parent.

    `mailboxes` maps mailbox ids to names as the server gives them. The result maps the same ids
    to names that stay apart under case folding and Unicode normalisation, and that no email has.
    """
    alike = Counter(mailboxes.values())
    identity = {
        mailbox_id: name if alike[name] == 1 else f"{name}\0{mailbox_id}"
        for mailbox_id, name in mailboxes.items()
    }
    plain = {mailbox_id: _plain_name(name) for mailbox_id, name in mailboxes.items()}
    names = {
        mailbox_id: name or f"unnamed_{key(identity[mailbox_id])}"
        for mailbox_id, name in plain.items()
    }
    for length in _KEY_LENGTHS:
        folded = Counter(map(_folded, names.values()))
        twins = [mailbox_id for mailbox_id, name in names.items() if folded[_folded(name)] > 1]
        if not twins:
            break
        for mailbox_id in twins:
            suffix = key(identity[mailbox_id], length=length)
            names[mailbox_id] = f"{plain[mailbox_id] or 'unnamed'}_{suffix}"
    return names


def _plain_name(name: str) -> str:
    safe = safe_text(name, limit=_LIMIT)
    if safe.casefold().endswith(SUFFIX):
        # Directories and emails stand side by side: the ending belongs to the emails.
        return f"{safe[: -len(SUFFIX)]}-{SUFFIX[1:]}"
    return safe


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFKC", name).casefold())
