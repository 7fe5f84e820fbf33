"""Email/query (RFC 8621 §4.4, RFC 8620 §5.5), and changes between its pages."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from .account import Account, Listing, operate
from .call import Call
from .errors import MethodError

if TYPE_CHECKING:
    from .app import MailServer


def email_query(server: MailServer, arguments: dict[str, Any]) -> dict[str, Any]:
    call = Call(
        server,
        arguments,
        *("filter", "sort", "position", "anchor", "anchorOffset", "limit"),
        *("calculateTotal", "collapseThreads"),
    )
    page = _begin_page(call)
    account = call.account
    quirks = call.quirks
    ids = _listed(call, page).ids
    start = _start(call, page)
    limit, clamped = _limit(call)
    if quirks.short_pages:
        limit = max(1, (limit or len(ids)) // (1 + page % 3))
    stop = None if limit is None else start + limit
    response: dict[str, Any] = {
        "accountId": account.id,
        "queryState": "same" if quirks.moving_order else account.logs["Email"].state,
        "canCalculateChanges": False,
        "position": start,
        "ids": list(islice(ids, start, stop)),
    }
    if clamped:
        response["limit"] = limit
    if call.flag("calculateTotal") and not quirks.no_total:
        response["total"] = len(ids) + len(_members(call) & set(quirks.unlisted_ids))
        if quirks.page_total:
            response["total"] = len(response["ids"])
    return response


def _begin_page(call: Call) -> int:
    """Count the page, and make the changes that are due before it."""
    server, arguments = call.server, call.arguments
    if arguments.get("limit") == 1 and "position" not in arguments and "anchor" not in arguments:
        # This is no listing: the client wants to know the total only.
        server.counts.totals += 1
        return 0
    server.counts.pages += 1
    server.counts.sorted_pages += bool(arguments.get("sort"))
    first = arguments.get("anchor") is None and not arguments.get("position")
    return begin_page(server, call.account, first=first)


def begin_page(server: MailServer, account: Account, *, first: bool = False) -> int:
    """Make the changes that are due before a page of ids, or of emails; return its number."""
    server.query_page = 1 if first else server.query_page + 1
    for hook in server.page_hooks:
        hook(account, server.query_page)
    changes = server.quirks.page_changes
    for each in [each for each in changes if each.page == server.query_page]:
        changes.remove(each)
        account = server.primary if each.account is None else server.accounts[each.account]
        operate(account, each.method, each.arguments)
    return server.query_page


def _mailbox_id(call: Call) -> str | None:
    match call.arguments.get("filter"):
        case None:
            return None
        case {"inMailbox": str(mailbox_id), **others} if not others:
            if mailbox_id not in call.account.mailboxes:
                raise MethodError("invalidArguments", "unknown mailbox")
            return mailbox_id
        case {**conditions} if not conditions:
            return None
    raise MethodError("unsupportedFilter")


def _ascending(call: Call) -> bool:
    if call.flag("collapseThreads"):
        raise MethodError("invalidArguments", "collapseThreads is not supported here")
    if call.arguments.get("sort") and call.quirks.no_sort:
        raise MethodError("unsupportedSort")
    match call.arguments.get("sort"):
        case None | []:
            return False
        case [{"property": "receivedAt", **others}] if set(others) <= {"isAscending"}:
            return bool(others.get("isAscending", True))
    raise MethodError("unsupportedSort")


def _listed(call: Call, page: int) -> Listing:
    quirks = call.quirks
    listing = call.account.listing(_mailbox_id(call), ascending=_ascending(call))
    hidden = {*quirks.unlisted_ids, *quirks.ghost_ids}
    moves = quirks.moving_order and bool(call.arguments.get("sort"))
    if hidden.isdisjoint(listing.positions) and not moves and not quirks.phantom_ids:
        return listing
    ids = [*(each for each in listing.ids if each not in hidden), *quirks.phantom_ids]
    if moves and ids:
        # Emails that are not in the search index yet come last, and move to their places later.
        moved = page % len(ids)
        ids = ids[moved:] + ids[:moved]
    return Listing(ids, {each: position for position, each in enumerate(ids)})


def _members(call: Call) -> set[str]:
    mailbox_id = _mailbox_id(call)
    account = call.account
    return set(account.emails if mailbox_id is None else account.members[mailbox_id])


def _start(call: Call, page: int) -> int:
    listing = _listed(call, page)
    anchor = call.arguments.get("anchor")
    if call.quirks.no_anchors and (anchor is not None or (call.integer("position") or 0) < 0):
        raise MethodError("invalidArguments", "anchors are not supported")
    if anchor is None:
        position = call.integer("position") or 0
        return max(0, position + len(listing.ids)) if position < 0 else position
    if page in call.quirks.anchor_lost_at_pages:
        # Only once, so that a client that starts over can finish.
        call.quirks.anchor_lost_at_pages.remove(page)
        raise MethodError("anchorNotFound")
    if anchor not in listing.positions:
        raise MethodError("anchorNotFound")
    return max(0, listing.positions[anchor] + (call.integer("anchorOffset") or 0))


def _limit(call: Call) -> tuple[int | None, bool]:
    requested, maximum = call.natural("limit"), call.quirks.query_limit
    smallest, largest = call.quirks.accepted_limits
    if requested is not None and not smallest <= requested <= largest:
        raise MethodError("invalidArguments", f"the limit {requested} is refused")
    if maximum is None or (requested is not None and requested <= maximum):
        return requested, False
    return maximum, True
