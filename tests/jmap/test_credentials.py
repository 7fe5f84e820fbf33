"""Credentials: the header that is sent, and that the secret appears nowhere else."""

from __future__ import annotations

import pytest

from jmapfs.errors import ConfigError
from jmapfs.jmap.credentials import BasicCredentials, BearerCredentials, Credentials
from jmapfs.protection import redact


def test_basic_authorization() -> None:
    assert BasicCredentials("Aladdin", "open sesame").authorization == (
        "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
    )


def test_basic_authorization_is_utf8() -> None:
    assert BasicCredentials("test", "123£").authorization == "Basic dGVzdDoxMjPCow=="


def test_bearer_authorization() -> None:
    assert BearerCredentials("fmu1-abc").authorization == "Bearer fmu1-abc"


@pytest.mark.parametrize(
    "credentials", [BasicCredentials("alice", "hush-hush"), BearerCredentials("hush-hush")]
)
def test_repr_and_str_hide_the_secret(credentials: Credentials) -> None:
    for shown in (repr(credentials), str(credentials), f"{[credentials]}"):
        assert "hush" not in shown
        assert credentials.authorization.split()[1] not in shown


def test_redact_removes_the_secret_in_all_forms() -> None:
    basic = BasicCredentials("alice", "open-sesame")
    text = f"bad {basic.authorization} with open-sesame"
    assert redact(text) == "bad Basic … with …"
    del basic
    assert redact(text) == text
    bearer = BearerCredentials("open-sesame")
    assert redact("no open-sesame") == "no …"
    del bearer


def test_redact_ignores_a_very_short_secret() -> None:
    credentials = BasicCredentials("alice", "a")
    assert redact("a bad day") == "a bad day"
    del credentials


@pytest.mark.parametrize(
    ("username", "password"),
    [("", "pw"), ("al:ice", "pw"), ("alice", ""), ("alice", "secret\n"), ("a\x00", "secret")],
)
def test_invalid_basic_credentials_are_refused(username: str, password: str) -> None:
    with pytest.raises(ConfigError) as caught:
        BasicCredentials(username, password)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("token", ["", "sec ret", "secret\n", "secrét"])
def test_invalid_token_is_refused(token: str) -> None:
    with pytest.raises(ConfigError) as caught:
        BearerCredentials(token)
    assert not token or token not in str(caught.value)
