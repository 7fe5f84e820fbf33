"""Names of files and keywords as they are shown: they come from mail, and mail from anybody."""

from __future__ import annotations

import json


def escaped(text: str) -> str:
    r"""Return text with an escape such as `\x1b` for each character that is not printable.

    Undecodable bytes of file names are among these, and so are line breaks.
    """
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def escaped_json(document: str) -> str:
    r"""Return JSON with an escape such as `\u009b` for each character that is not printable.

    It means the same, and has the same line breaks.
    """
    if document.isprintable():
        return document
    return "".join(
        one if one.isprintable() or one == "\n" else json.dumps(one)[1:-1] for one in document
    )
