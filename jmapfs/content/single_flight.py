"""Single flight: one delivery of a blob, however many wait for it.

A Flight is a promise that somebody delivers a blob: the content service, for a read, or whoever
reads ahead. Those who wait can leave at any time; that ends nothing but their waiting.
"""

from __future__ import annotations

from collections.abc import Callable

import trio


class Download:
    """A blob on its way. Whoever began it ends it, by `deliver`, `fail` or `withdraw`.

    `waiters` is how many wait right now. `ahead` says that it is delivered whether anybody waits
    or not. `queue` is the scope in which the delivery waits for its turn: when the last waiter
    leaves meanwhile, it is cancelled.
    """

    def __init__(self, flights: SingleFlight, blob_id: str) -> None:
        self.blob_id = blob_id
        self.waiters = 0
        self.ahead = False
        self.queue: trio.CancelScope | None = None
        self._flights = flights
        self._forward: Callable[[], None] | None = None
        self._landed = trio.Event()
        self._delivered = False
        self._data: bytes | None = None
        self._error: Exception | None = None

    @property
    def landed(self) -> bool:
        """Whether it has ended."""
        return self._landed.is_set()

    @property
    def delivered(self) -> bool:
        """Whether it has brought the blob."""
        return self._delivered

    @property
    def error(self) -> Exception | None:
        """What it has failed with, if it has."""
        return self._error

    async def ended(self) -> None:
        """Return when it has ended, one way or another; who only watches brings nothing forward."""
        await self._landed.wait()

    async def wait(self) -> bytes | None:
        """Return the content; or None when it is to be looked for again.

        Raises:
            Exception: what the delivery failed with; the same for all who wait.
        """
        self.waiters += 1
        forward, self._forward = self._forward, None
        if forward is not None:
            forward()
        try:
            await self._landed.wait()
        finally:
            self.waiters -= 1
            if not self.waiters and self.queue is not None and not self.ahead:
                self.queue.cancel()
        if self._error is not None:
            raise self._error
        return self._data

    def put_off(self, forward: Callable[[], None]) -> None:
        """Let the flight wait for its turn; `forward` is called if somebody comes to wait for it.

        It begins with `claim`, unless `forward` was called, which sees to it that it flies at once.
        """
        if self.waiters:
            forward()
        else:
            self._forward = forward

    def claim(self) -> bool:
        """Begin a flight that was put off; False where it was brought forward meanwhile."""
        forward, self._forward = self._forward, None
        return forward is not None

    def deliver(self, data: bytes | None) -> None:
        """Hand the content to all who wait; None where they find it open (a large blob)."""
        # Who keeps the flight to see what becomes of it is not to keep the content.
        self._data = data if self.waiters else None
        self._delivered = True
        self._land()

    def fail(self, error: Exception) -> None:
        """Hand an error to all who wait; who comes later tries again."""
        self._error = error
        self._land()

    def withdraw(self) -> None:
        """Deliver nothing: who waits for it fetches it for himself."""
        self._land()

    def _land(self) -> None:
        self._flights.forget(self)
        self._landed.set()


class SingleFlight:
    """The flights under way, by blob id."""

    def __init__(self) -> None:
        self._flights: dict[str, Download] = {}

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._flights)

    def get(self, blob_id: str) -> Download | None:
        """Return the flight of a blob, or None."""
        return self._flights.get(blob_id)

    def begin(self, blob_id: str) -> Download:
        """Begin the flight of a blob that has none."""
        if blob_id in self._flights:
            raise RuntimeError("a flight of this blob is under way")
        flight = self._flights[blob_id] = Download(self, blob_id)
        return flight

    def forget(self, flight: Download) -> None:
        """Take a flight out that has landed."""
        if self._flights.get(flight.blob_id) is flight:
            del self._flights[flight.blob_id]
