"""Keeps secrets inside this process: out of texts, of child processes and of core dumps.

A server can repeat a secret in any text, also in an encoded form, broken into lines, or cut at its
end. `redact` finds these. All texts of servers reach the user and the log through
`errors.printable`, which redacts the whole text before it shortens it.
"""

import ctypes
import html
import os
import re
import resource
import threading
import weakref
from collections.abc import Iterator
from typing import Final

# Shorter secrets stay: removing every "a" would only make a text unreadable.
_SHORTEST: Final = 4

_REPLACEMENT: Final = "…"

# The encodings that are removed, by the characters with which they begin.
_MARKS: Final = ("%", "\\", "&", "%\\&")

# An encoded character of a URL, of JSON or of HTML. White space and control characters are ignored:
# they break and fold lines, and are removed before a text is shown.
_CHARACTERS: Final = re.compile(
    r"%(?P<byte>[0-9A-Fa-f]{2})"
    r"|(?P<pair>\\u[Dd][89ABab][0-9A-Fa-f]{2}\\u[Dd][C-Fc-f][0-9A-Fa-f]{2})"
    r"|\\u(?P<code>[0-9A-Fa-f]{4})"
    r"|(?P<ignored>\\[bfnrt]|[\s\x00-\x1f\x7f-\x9f])"
    r"|\\(?P<escaped>[\"\\/])"
    r"|(?P<entity>&(?:\#\d{1,7}|\#[xX][0-9A-Fa-f]{1,6}|[A-Za-z]{2,8});)",
)
_SPACES: Final = bytes(range(0x21)) + b"\x7f"
# The beginning of an encoded character at the end of a text.
_CUT_CHARACTER: Final = re.compile(
    r"(?:%[0-9A-Fa-f]?|\\u[Dd][89ABab][0-9A-Fa-f]{2}(?:\\(?:u[0-9A-Fa-f]{0,3})?)?|\\(?:u[0-9A-Fa-f]{0,3})?|&(?:\#?[0-9A-Za-z]{0,8})?)\Z"
)


class Secret:
    """A secret that `redact` removes from texts as long as this object exists.

    `forms` are the texts that contain it, such as a password and its base64 form.
    """

    def __init__(self, *forms: str) -> None:
        self._needles = frozenset(
            needle for form in forms for needle in _needles(form) if len(needle) >= _SHORTEST
        )
        with _lock:
            _secrets.add(self)

    def spans(self, data: bytes, *, cut: bool) -> Iterator[tuple[int, int]]:
        """Yield the places of the secret in a text; if it is `cut`, also of its beginning."""
        for needle in self._needles:
            start = data.find(needle)
            while start >= 0:
                yield start, start + len(needle)
                start = data.find(needle, start + 1)
            if cut:
                for length in range(min(len(needle), len(data)), _SHORTEST - 1, -1):
                    if data.endswith(needle[:length]):
                        yield len(data) - length, len(data)
                        break


_lock: Final = threading.Lock()
_secrets: Final[weakref.WeakSet[Secret]] = weakref.WeakSet()


def redact(text: str, *, cut: bool = False) -> str:
    """Return a text without all secrets, in plain and encoded forms.

    If the text is `cut`, the beginning of a secret at its end is removed too.
    """
    with _lock:
        secrets = list(_secrets)
    if not secrets or not text:
        return text
    if cut:
        text = _CUT_CHARACTER.sub("", text)
    # A secret may itself look like an encoded text. So the text is also searched as it is, and with
    # only one encoding removed.
    readings = [_read(text, marks) for marks in ("", *_MARKS) if not marks or _has(text, marks)]
    found = sorted(
        (places[start][0], places[end - 1][1])
        for data, places in readings
        for secret in secrets
        for start, end in secret.spans(data, cut=cut)
    )
    parts = []
    position = 0
    for start, end in found:
        if start >= position:
            parts += [text[position:start], _REPLACEMENT]
        position = max(position, end)
    return "".join(parts) + text[position:]


def _needles(form: str) -> Iterator[bytes]:
    for spelling in {form, form.replace(" ", "+")}:
        for marks in ("", "%\\&"):
            yield _read(spelling, marks)[0]


def _has(text: str, marks: str) -> bool:
    return any(mark in text for mark in marks)


def _read(text: str, marks: str) -> tuple[bytes, list[tuple[int, int]]]:
    """Return the bytes of a text without white space, and where each comes from in the text.

    Encodings that begin with one of the `marks` are decoded.
    """
    data = bytearray()
    places: list[tuple[int, int]] = []

    def add(characters: bytes, start: int, end: int) -> None:
        if characters.strip(_SPACES):
            data.extend(characters)
            places.extend([(start, end)] * len(characters))

    def add_plain(start: int, end: int) -> None:
        if text[start:end].isascii():
            data.extend(text[start:end].encode())
            places.extend(zip(range(start, end), range(start + 1, end + 1), strict=True))
            return
        for index in range(start, end):
            add(text[index].encode(errors="surrogatepass"), index, index + 1)

    position = 0
    for match in _CHARACTERS.finditer(text):
        add_plain(position, match.start())
        position = match.end()
        if match[0][0] not in marks:
            # Only white space is ignored in any case.
            if match["ignored"] is None or match[0][0] == "\\":
                add_plain(match.start(), match.end())
        elif match["ignored"] is None:
            add(_decoded(match), match.start(), match.end())
    add_plain(position, len(text))
    return bytes(data), places


def _decoded(match: re.Match[str]) -> bytes:
    if match["byte"] is not None:
        return bytes.fromhex(match["byte"])
    if match["pair"] is not None:
        units = bytes.fromhex(match["pair"].replace("\\u", ""))
        return units.decode("utf-16-be").encode()
    if match["code"] is not None:
        return chr(int(match["code"], 16)).encode(errors="surrogatepass")
    if match["escaped"] is not None:
        return match["escaped"].encode()
    return html.unescape(match["entity"]).encode(errors="surrogatepass")


_variables: Final = {"JMAPFS_PASSWORD", "JMAPFS_TOKEN"}


def hide_variable(name: str) -> None:
    """Note that an environment variable contains a secret."""
    _variables.add(name)


def child_environment() -> dict[str, str]:
    """Return the environment for a child process: without secrets of jmapfs."""
    return {name: value for name, value in os.environ.items() if name not in _variables}


def clear_environment() -> None:
    """Remove the secrets from the environment, also for programs that libraries run."""
    for name in _variables:
        os.environ.pop(name, None)


_PR_SET_DUMPABLE: Final = 4


def protect_memory() -> None:
    """Disable core dumps of this process, and of those that it forks, for good.

    Other processes of the same user cannot read its memory then, nor its files in /proc (prctl(2),
    proc_pid(5)). A program that it executes is not affected. If the system does not allow this, the
    command goes on.
    """
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
