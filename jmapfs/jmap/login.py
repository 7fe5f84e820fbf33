"""The login of a user: credentials that may change, and that a server may refuse.

After a refusal the secret is read again from its source. A new secret is sent at once. If the
secret is the same, it is wrong, and is sent again only after a pause: some servers ban an address
after a number of failed logins. All clients of a user share one Login, so they share the pauses.
"""

import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import trio

from jmapfs.errors import AuthenticationError, ConfigError
from jmapfs.jmap.credentials import BasicCredentials, Credentials

RETRY_PAUSES = (300.0, 900.0, 3600.0)
"""Seconds until a refused secret is sent again; the last pause repeats."""

# If the server has refused no secret for this time, the next pause is short again. The time is
# long, so that the pauses stay long if the server accepts the secret now and then.
_FORGET_SECONDS = 4 * RETRY_PAUSES[-1]
# The server may repeat a secret in a later response, also a secret that has been replaced. As long
# as the credentials exist, it is removed from texts.
_MAX_KNOWN = 8


class Login:
    """The credentials of one user. Safe for many tasks at once.

    `read` gets the credentials again from their source, in a thread; it may raise ConfigError. If
    `read` is None, they cannot change. With `quick`, the source is also read before each attempt to
    log in during a pause, so that a corrected secret is found soon. This is for sources such as a
    file: reading them disturbs nobody.
    """

    def __init__(
        self,
        credentials: Credentials,
        read: Callable[[], Credentials] | None = None,
        *,
        quick: bool = False,
    ) -> None:
        self._credentials = credentials
        self._read = read
        self._quick = quick
        self._known = [credentials]
        self._refusal: AuthenticationError | None = None
        self._failures = 0
        self._refused_at = -math.inf
        self._retry_at = -math.inf
        self._attempting = False
        self._attempts = trio.Lock()
        self._reading = trio.Lock()

    @property
    def username(self) -> str:
        """The user name, or an empty string if the secret is a token."""
        return self._credentials.username if isinstance(self._credentials, BasicCredentials) else ""

    @property
    def current(self) -> Credentials:
        """The credentials that were read last."""
        return self._credentials

    @property
    def refusal(self) -> AuthenticationError | None:
        """Why the secret must not be sent now, or None."""
        return self._refusal

    def retry_now(self) -> None:
        """Let the next attempt send the secret again, even if it was refused."""
        self._retry_at = -math.inf

    async def credentials(self) -> Credentials:
        """Return the credentials for a request.

        Raises AuthenticationError if the server has refused them. Then only an attempt may send
        them again.
        """
        # A task may be reading the secret again: wait for it.
        async with self._reading:
            if self._refusal is not None and not self._attempting:
                raise self._paused()
            return self._credentials

    @asynccontextmanager
    async def attempt(self) -> AsyncIterator[None]:
        """Log in within the context. If it ends without an error, the server has accepted.

        While the server refuses the credentials, there is one attempt at a time. Raises
        AuthenticationError at once if the secret is not to be sent yet.
        """
        if self._refusal is None:
            yield
            return
        async with self._attempts:
            if self._refusal is not None:
                await self._require_chance()
                self._attempting = True
            try:
                yield
            finally:
                self._attempting = False
            self._refusal = None

    async def renew(
        self,
        refused: Credentials,
        error: AuthenticationError,
        until: float,
        *,
        pauses: bool = True,
    ) -> bool:
        """Read the secret again, because the server has refused these credentials with `error`.

        Returns whether there are other credentials now. Otherwise the pause begins, if `pauses`.
        Reading takes until the moment `until` at most.
        """
        with trio.move_on_at(until):
            async with self._reading:
                if refused != self._credentials:
                    return True
                if self._refusal is not None and not self._attempting:
                    return False
                # Begin the pause before reading: reading may take long, and may be cancelled.
                if pauses:
                    self._begin_pause(error)
                return await self._read_again()
        return False

    def _begin_pause(self, error: AuthenticationError) -> None:
        now = trio.current_time()
        if now - self._refused_at > _FORGET_SECONDS:
            self._failures = 0
        self._refusal = error
        self._refused_at = now
        pause = RETRY_PAUSES[min(self._failures, len(RETRY_PAUSES) - 1)]
        self._retry_at = now + pause
        self._failures += 1
        retry_at = datetime.fromtimestamp(time.time() + pause, UTC)
        error.remark = f"they are sent again at {retry_at:%H:%M} UTC, or by jmapfs sync"
        # Requests of the same attempt must not send the secret again.
        self._attempting = False

    async def _read_again(self) -> bool:
        """Read the secret. Return whether it is new; then the pause ends."""
        if self._read is None:
            return False
        try:
            credentials = await trio.to_thread.run_sync(self._read, abandon_on_cancel=True)
        except ConfigError as error:
            if self._refusal is not None:
                refusal = AuthenticationError(f"{self._refusal}; now {error}")
                refusal.remark = self._refusal.remark
                self._refusal = refusal
            return False
        if credentials == self._credentials:
            return False
        self._credentials = credentials
        self._known = [credentials, *self._known][:_MAX_KNOWN]
        self._refusal = None
        self._failures = 0
        return True

    async def _require_chance(self) -> None:
        """Return if the secret may be sent: it is new, or the pause is over."""
        due = trio.current_time() >= self._retry_at
        if due or self._quick:
            async with self._reading:
                if await self._read_again() or due:
                    return
        raise self._paused()

    def _paused(self) -> AuthenticationError:
        remark = "" if self._refusal is None else self._refusal.remark
        return AuthenticationError(f"{self._refusal} ({remark})")
