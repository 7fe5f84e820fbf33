"""Single flight: one delivery of a blob, however many wait for it.

A Flight is a promise that somebody delivers a blob: the content service, for a read, or whoever
reads ahead. Those who wait can leave at any time; that ends nothing but their waiting.
"""

from __future__ import annotations

import trio


class Flight:
    """A blob on its way. Whoever began it ends it, by `deliver`, `fail` or `withdraw`.

    `waiters` is how many wait right now; `wanted` is set when the first begins to, so that one who
    reads ahead can bring this blob forward. `queue` is the scope in which the delivery waits for
    its turn: when the last waiter leaves meanwhile, it is cancelled.
    """

    def __init__(self, flights: Flights, blob_id: str) -> None:
        self.blob_id = blob_id
        self.waiters = 0
        self.wanted = trio.Event()
        self.queue: trio.CancelScope | None = None
        self._flights = flights
        self._landed = trio.Event()
        self._data: bytes | None = None
        self._error: Exception | None = None

    @property
    def landed(self) -> bool:
        """Whether it has ended."""
        return self._landed.is_set()

    async def wait(self) -> bytes | None:
        """Return the content; or None when it is to be looked for again.

        Raises:
            Exception: what the delivery failed with; the same for all who wait.
        """
        self.waiters += 1
        self.wanted.set()
        try:
            await self._landed.wait()
        finally:
            self.waiters -= 1
            if not self.waiters and self.queue is not None:
                self.queue.cancel()
        if self._error is not None:
            raise self._error
        return self._data

    def deliver(self, data: bytes | None) -> None:
        """Hand the content to all who wait; None where they find it open (a large blob)."""
        self._data = data
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


class Flights:
    """The flights under way, by blob id."""

    def __init__(self) -> None:
        self._flights: dict[str, Flight] = {}

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._flights)

    def get(self, blob_id: str) -> Flight | None:
        """Return the flight of a blob, or None."""
        return self._flights.get(blob_id)

    def begin(self, blob_id: str) -> Flight:
        """Begin the flight of a blob that has none."""
        if blob_id in self._flights:
            raise RuntimeError("a flight of this blob is under way")
        flight = self._flights[blob_id] = Flight(self, blob_id)
        return flight

    def forget(self, flight: Flight) -> None:
        """Take a flight out that has landed."""
        if self._flights.get(flight.blob_id) is flight:
            del self._flights[flight.blob_id]
