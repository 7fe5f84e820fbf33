"""A secret leaves its process only in a request: not in texts, child processes or core dumps."""

from __future__ import annotations

import base64
import html
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

import pytest

from jmapfs.errors import MethodError, RequestError, printable
from jmapfs.jmap.credentials import BasicCredentials, BearerCredentials
from jmapfs.jmap.http_errors import LIMIT, http_error, sanitize
from jmapfs.protection import Secret, child_environment, redact

PASSWORDS = [
    *(
        "s3cret-0f-alice",
        "a b&c<d>e?f#g",
        'quo"te\\slash/',
        "p%41ss&amp;w",
        "Grüße, 日本 😀!",
        "++//==",
    ),
    *("two  spaces in it", "\\u0041\\n%0a", "x" * 60),
]


@pytest.fixture(params=PASSWORDS)
def password(request: pytest.FixtureRequest) -> Iterator[str]:
    secret: str = request.param
    credentials = BasicCredentials("alice@example.org", secret)
    yield secret
    del credentials


def spellings(password: str) -> dict[str, str]:
    """Return how a server may repeat a password, or the header that contains it."""
    pair = f"alice@example.org:{password}".encode()
    return {
        "plain": password,
        "folded": "\r\n\t".join(password),
        "url": quote(password, safe=""),
        "lower url": "".join(f"%{byte:02x}" for byte in password.encode()),
        "form": quote_plus(password),
        "json": json.dumps(password)[1:-1],
        "unicode json": json.dumps(password, ensure_ascii=False)[1:-1],
        "escaped json": "".join(
            json.dumps(c)[1:-1] if ord(c) > 127 else f"\\u{ord(c):04x}" for c in password
        ),
        "html": html.escape(password),
        "numbers": "".join(f"&#{ord(char)};" for char in password),
        "hex": "".join(f"&#x{ord(char):X};" for char in password),
        "basic": base64.b64encode(pair).decode(),
        "unpadded": base64.urlsafe_b64encode(pair).decode().rstrip("="),
        "folded basic": base64.encodebytes(pair).decode(),
        "url of basic": quote(base64.b64encode(pair).decode(), safe=""),
    }


def test_a_secret_is_removed_in_each_spelling(password: str) -> None:
    for name, spelling in spellings(password).items():
        # The padding of base64 may stay.
        shown = redact(f"before {spelling} after").replace("%3D", "=")
        assert re.fullmatch(r"before …=?=?\s? after", shown), (name, shown)


def test_a_secret_at_the_edge_is_removed_before_the_text_is_cut(password: str) -> None:
    for name, spelling in spellings(password).items():
        for length in range(1, 12):
            filler = "y" * (80 - length)
            shown = printable(f"{filler}{spelling} and more", 80)
            rest = shown.removeprefix(filler).rstrip("…")
            assert re.fullmatch(r"…?[= ]*(…?|a|an|and|%3D|%3|%)*( .*)?", rest), (name, shown)


def test_the_beginning_of_a_secret_at_the_end_of_a_cut_text_is_removed(password: str) -> None:
    for name, spelling in spellings(password).items():
        for length in range(5, len(spelling), 5):
            shown = redact(f"it was {spelling[:length]}", cut=True)
            rest = shown.removeprefix("it was ").removesuffix("…")
            # Up to three characters of a secret are not recognized.
            assert len(rest) <= 36, (name, length, shown)
            assert len(redact(f"{spelling[:length]}")) <= length


@pytest.mark.parametrize(
    ("status", "name"),
    [(400, ""), (401, "www-authenticate"), (302, "location"), (403, ""), (500, ""), (429, "")],
)
def test_no_error_of_a_server_contains_a_secret(password: str, status: int, name: str) -> None:
    """The error takes texts apart at `<`, `?`, `#`, `"` and `,`, and shortens them."""
    for spelling in spellings(password).values():
        if len(spelling) > 300:
            continue
        for body in (
            f"<!doctype html><title>x</title><p>{'w ' * 80}{spelling}</p>",
            json.dumps({"type": spelling, "detail": f"bad {spelling}", "limit": spelling}),
            f'{{"title": "{spelling}',
        ):
            headers = {name: f'Basic realm="{spelling}", charset="{spelling}"'} if name else {}
            if name == "location":
                headers = {name: f"https://evil.example/{spelling}"}
            error = http_error(status, headers, body.encode(), host="example.org")
            assert password not in str(error)
            for part in (password[:8], password[-8:]):
                assert len(part) < 8 or part not in str(error), str(error)


def test_a_secret_across_the_end_of_a_long_page() -> None:
    credentials = BearerCredentials("tok-0123456789-abcdef")
    page = b"<p>" + b" " * (16_384 - 3 - 10) + credentials.token.encode() + b"</p>"
    assert sanitize(page, 200) == "…"
    del credentials
    assert redact("tok-0123456789-abcdef") == "tok-0123456789-abcdef"


def test_short_secrets_and_other_words_stay() -> None:
    secrets = [Secret("abc"), Secret("hush-hush")]
    for text in ("abc", "hush", "a hush-hus", "100% & more \\o/ &amp; so on", "Grüße"):
        assert redact(text) == text
    assert redact("a hush-hush, hush-hush") == "a …, …"
    del secrets


def test_a_secret_that_is_a_word_of_jmap_changes_no_decision() -> None:
    secrets = [Secret("Calculate"), Secret("maxSize")]
    method = MethodError("Email/changes", "cannotCalculateChanges")
    assert method.kind == "cannotCalculateChanges"
    assert str(method) == "the server answered Email/changes with cannot…Changes"
    body = json.dumps({"type": LIMIT, "limit": "maxSizeRequest"}).encode()
    request = http_error(400, {}, body, host="example.org")
    # Waiting does not help against this limit.
    assert isinstance(request, RequestError)
    assert (request.limit, "maxSize" in str(request)) == ("maxSizeRequest", False)
    del secrets


def test_child_processes_get_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JMAPFS_PASSWORD", "hush-hush")
    monkeypatch.setenv("JMAPFS_TOKEN", "hush-hush")
    monkeypatch.setenv("JMAPFS_USERNAME", "alice")
    assert os.environ.items() - child_environment().items() == {
        ("JMAPFS_PASSWORD", "hush-hush"),
        ("JMAPFS_TOKEN", "hush-hush"),
    }


def test_a_protected_process_leaves_no_core_dump() -> None:
    program = """
import ctypes, os, resource
from jmapfs.protection import protect_memory
protect_memory()
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE)[0])
print(os.stat(f"/proc/{os.getpid()}/environ").st_uid, len(os.listdir("/proc/self/fd")) > 2)
if os.fork() == 0:
    print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), flush=True)
    os._exit(0)
os.wait()
"""
    resource.getrlimit(resource.RLIMIT_CORE)
    result = subprocess.run(
        [sys.executable, "-uc", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["0", "0", "0", "True", "0"]
