"""Credentials: a user name and a password, or a token.

The secret appears in `authorization` only: not in the repr, not in an error text. As long as the
credentials exist, it is also removed from every text of a server (`jmapfs.protection`).
"""

import base64
from dataclasses import dataclass, field
from typing import TypeAlias

from jmapfs.errors import ConfigError
from jmapfs.protection import Secret


@dataclass(frozen=True, slots=True)
class BasicCredentials:
    """A user name and a password (RFC 7617).

    Raises ConfigError if the user name or the password is empty or has control characters, or if
    the user name contains a colon.
    """

    username: str
    password: str = field(repr=False)
    _secret: Secret = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.username:
            raise ConfigError("the user name is empty")
        if ":" in self.username:
            raise ConfigError("a user name for Basic authentication cannot contain a colon")
        if not self.password:
            raise ConfigError("the password is empty")
        if _has_control_characters(self.username + self.password):
            raise ConfigError("the user name or the password contain control characters")
        encoded = self._encoded
        forms = [encoded, encoded.translate(str.maketrans("+/", "-_"))]
        # The padding may be missing.
        forms += [form.rstrip("=") for form in forms]
        object.__setattr__(self, "_secret", Secret(self.password, *forms))

    @property
    def authorization(self) -> str:
        """The value of the `Authorization` header."""
        return f"Basic {self._encoded}"

    @property
    def _encoded(self) -> str:
        return base64.b64encode(f"{self.username}:{self.password}".encode()).decode("ascii")


@dataclass(frozen=True, slots=True)
class BearerCredentials:
    """A token (RFC 6750), such as an API token.

    Raises ConfigError if the token is empty or cannot be sent in a header.
    """

    token: str = field(repr=False)
    _secret: Secret = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.token:
            raise ConfigError("the token is empty")
        if not self.token.isascii() or not self.token.isprintable() or " " in self.token:
            raise ConfigError("the token contains spaces, control or non-ASCII characters")
        object.__setattr__(self, "_secret", Secret(self.token))

    @property
    def authorization(self) -> str:
        """The value of the `Authorization` header."""
        return f"Bearer {self.token}"


Credentials: TypeAlias = BasicCredentials | BearerCredentials


def _has_control_characters(text: str) -> bool:
    return any(ord(character) < 0x20 or ord(character) == 0x7F for character in text)
