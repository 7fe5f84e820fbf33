"""Origins of URLs, and texts of a server that are fit to be shown."""

from __future__ import annotations

import httpx
import pytest

from jmapfs.errors import ConfigError, printable
from jmapfs.jmap.http_errors import sanitize
from jmapfs.jmap.origins import host_of, is_loopback, secure_origin


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://Mail.Example.ORG/x", "https://mail.example.org:443"),
        ("https://mail.example.org:443/", "https://mail.example.org:443"),
        ("https://mail.example.org:8443", "https://mail.example.org:8443"),
        ("http://127.0.0.1:8080/x", "http://127.0.0.1:8080"),
        ("http://[::1]/x", "http://[::1]:80"),
        ("https://bücher.example/", "https://xn--bcher-kva.example:443"),
    ],
)
def test_origin_of_url(url: str, origin: str) -> None:
    assert secure_origin(url, naming="it", error=ConfigError) == origin


@pytest.mark.parametrize("url", ["https://a:0/", "https://a:70000/", "\x00", "//x"])
def test_unusable_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        secure_origin(url, naming="it", error=ConfigError)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "https://good@evil/",
            "https://good:pw@evil/",
            "https://good\\@evil/",
            "https://a:b@c:d@evil",
        ),
        *("https://good.example%2f@evil/", "http://127.0.0.1@evil/", "https://user@"),
        *(
            "https:evil/",
            "https:/\\evil/",
            "https:///evil/",
            "https://e\tvil/",
            "https://good\n.evil/",
        ),
        *("https://ⅇvil.example/", "javascript:alert(1)", "ftp://evil/", "https://evil:00/"),
        *(
            "http://127.1/",
            "http://0x7f000001/",
            "http://0.0.0.0/",
            "http://localhost.evil.example/",
        ),
        *("http://127.0.0.1.evil.example/", "http://localhost./", "http://[::ffff:127.0.0.1]/"),
    ],
)
def test_misleading_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        secure_origin(url, naming="it", error=ConfigError)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://good%40evil/", "good%40evil"),
        ("https://good.example#@evil/", "good.example"),
        ("https://good.example?@evil/", "good.example"),
        ("https://good.example./", "good.example."),
        ("https://evil。example/", "evil.example"),
        ("https://[fe80::1%25eth0]/", "[fe80::1%25eth0]"),
        ("HTTPS://Good.Example:0443/", "good.example"),
    ],
)
def test_the_origin_is_where_a_request_goes(url: str, host: str) -> None:
    """An unusual spelling of a host is an origin of its own, or the one that is connected to."""
    origin = secure_origin(url, naming="it", error=ConfigError)
    assert origin == f"https://{host}:443"
    sent = httpx.Request("GET", url).url
    assert sent.raw_host.decode() == host.strip("[]")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("LocalHost", True),
        ("127.0.0.1", True),
        ("127.255.255.254", True),
        ("::1", True),
        ("[::1]", True),
        ("128.0.0.1", False),
        ("127.1", False),
        ("0.0.0.0", False),
        ("::", False),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
        ("", False),
    ],
)
def test_loopback_addresses(host: str, *, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_host_of_url() -> None:
    assert host_of("https://a.example:443/x") == "a.example"
    assert host_of("https://[::1]:8080/x") == "[::1]:8080"


def test_printable_text_is_one_short_line() -> None:
    assert printable("a\n\x1b[31mb\u202ec  d", 50) == "a [31mb c d"
    assert printable("x" * 100, 10) == "x" * 9 + "…"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"plain < text > here", "plain < text > here"),
        (b"<!DOCTYPE html><script>x()</script><h1>Not&nbsp;now</h1><p>Later</p>", "Not now Later"),
        (b"<html><style>p {", ""),
        (b"\xff\xfe", "��"),
        (b"<p>" + b"<" * 100_000, "…"),
    ],
)
def test_sanitized_text_has_no_html(body: bytes, text: str) -> None:
    assert sanitize(body, 200).endswith(text)
