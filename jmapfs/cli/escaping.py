"""Names of files and keywords as they are shown: they come from mail, and mail from anybody."""

from __future__ import annotations

import json

import msgspec


def escaped(text: str) -> str:
    r"""Return text with an escape such as `\x1b` for each character that is not printable.

    Undecodable bytes of file names are among these, and so are line breaks.
    """
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def json_document(value: object) -> str:
    """Return structs, and what they hold, as a JSON document for people and programs.

    Names of files that are no text are in it as well, as Python writes them: with lone surrogates.
    """
    return escaped_json(json.dumps(msgspec.to_builtins(value), ensure_ascii=False, indent=2))


def escaped_json(document: str) -> str:
    r"""Return JSON with an escape such as `\u009b` for each character that is not printable.

    It means the same, and has the same line breaks.
    """
    if document.isprintable():
        return document
    return "".join(
        one if one.isprintable() or one == "\n" else json.dumps(one)[1:-1] for one in document
    )
