"""What all calls about one account share: whose it is, and what to do about too large requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from jmapfs.errors import JmapfsError, MethodError, ProtocolError, RequestError
from jmapfs.jmap.api import Api
from jmapfs.jmap.calls import Call, Response
from jmapfs.jmap.mail import AnswerType

T = TypeVar("T")


class AccountCalls:
    """Calls bound to one account id; several of them can share an Api."""

    def __init__(self, api: Api, account_id: str) -> None:
        self.api = api
        self.account_id = account_id

    def _call(self, name: str, arguments: Mapping[str, object], call_id: str = "0") -> Call:
        return Call(name, {"accountId": self.account_id, **arguments}, call_id)

    def _answer(self, response: Response, type_: type[AnswerType]) -> AnswerType:
        answer = response.decode(type_)
        if answer.account_id is not None and answer.account_id != self.account_id:
            raise ProtocolError(f"the server answers {response.name} for another account")
        return answer

    async def _ask(
        self,
        name: str,
        arguments: Mapping[str, object],
        type_: type[AnswerType],
        *,
        deadline: float,
    ) -> AnswerType:
        [response] = await self.api.request([self._call(name, arguments)], deadline=deadline)
        return self._answer(response, type_)

    async def _shrinking(self, size: int, ask: Callable[[int], Awaitable[T]]) -> T:
        """Ask with `size` objects at once, or fewer while the server finds that too many."""
        size = max(1, min(size, self.api.max_objects_in_get))
        while True:
            try:
                return await ask(size)
            except (MethodError, RequestError) as error:
                if size == 1 or not is_too_large(error):
                    raise
            size //= 2
            self.api.learn_max_objects(size)


def is_too_large(error: JmapfsError) -> bool:
    """Tell whether a request was refused for its size, so that half of it may be accepted."""
    if isinstance(error, MethodError):
        return error.kind == "requestTooLarge"
    if isinstance(error, RequestError):
        return error.status == 413 or error.limit in {"maxSizeRequest", "maxObjectsInGet"}
    return False
