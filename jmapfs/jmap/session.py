"""The session: URLs, accounts, capabilities and limits (RFC 8620 §2).

A Session is immutable: a changed session is a new object. Its URLs are absolute. Whatever else a
server sends that cannot be used, a session only needs a usable apiUrl and downloadUrl.
"""

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from urllib.parse import urljoin, urlsplit

import msgspec

from jmapfs.errors import ConfigError, ProtocolError, printable
from jmapfs.jmap.answers import SESSION_LIMIT, AnswerTooLargeError, run_decoder
from jmapfs.jmap.http import Transport
from jmapfs.jmap.lenient import decode_leniently
from jmapfs.jmap.origins import host_of, is_downgrade, secure_origin, with_origin_of
from jmapfs.jmap.response import HttpResponse
from jmapfs.jmap.types import Int, decode

CORE = "urn:ietf:params:jmap:core"
MAIL = "urn:ietf:params:jmap:mail"
_log = logging.getLogger(__name__)

SESSION_HEADERS = {"Accept": "application/json"}


@dataclass(frozen=True, slots=True)
class SessionAccount:
    """An account of the session. `capabilities` maps each capability to its limits and details."""

    id: str
    name: str
    is_personal: bool
    is_read_only: bool
    capabilities: Mapping[str, object]


class Limits(msgspec.Struct, frozen=True, rename="camel"):
    """The limits of the server (RFC 8620 §2). Each is at least 1. Sizes are in bytes."""

    max_objects_in_get: Int = 500
    max_calls_in_request: Int = 16
    max_concurrent_requests: Int = 4
    max_size_request: Int = 10_000_000


@dataclass(frozen=True, slots=True)
class Session:
    """A session of one user, found at `location`. `url` is its URL after all redirects.

    `origins` may receive the credentials. Each is mapped to what names it first, such as "the
    session's apiUrl", or to an empty string if it is the origin of `url`. With `rewrite_origin`,
    all URLs have the origin of `url`, whatever the server says. `blob_ids_are_sha1` is true for
    Cyrus, and for Fastmail, which runs Cyrus.
    """

    location: str
    url: str
    username: str
    api_url: str
    download_url: str
    event_source_url: str | None
    state: str
    accounts: Mapping[str, SessionAccount]
    primary_accounts: Mapping[str, str]
    capabilities: Mapping[str, object]
    limits: Limits
    origins: Mapping[str, str]
    blob_ids_are_sha1: bool
    rewrite_origin: bool

    def mail_accounts(self) -> list[SessionAccount]:
        """Return the accounts with mail, the primary one first, then by name."""
        primary = self.primary_accounts.get(MAIL)
        found = [
            account
            for account in self.accounts.values()
            if account.id == primary
            or MAIL in account.capabilities
            # If a server sends null, the capabilities of the session count.
            or (not account.capabilities and MAIL in self.capabilities)
        ]
        return sorted(found, key=lambda one: (one.id != primary, one.name, one.id))

    def mail_account(self, selection: str | None = None) -> SessionAccount:
        """Return the selected account, by id or by name, or the primary one for mail.

        If no primary account with mail is named, and only one account has mail, return that one.

        Raises ProtocolError if the server has no mail for this user. Raises ConfigError, with a
        list of the accounts, if the selection matches no account or several accounts.
        """
        if MAIL not in self.capabilities and not self.mail_accounts():
            raise ProtocolError(
                f"{host_of(self.url)} supports JMAP, but not for mail: no account of this user "
                f"has the capability {MAIL}"
            )
        if selection is not None:
            return self._select(selection)
        primary = self.primary_accounts.get(MAIL)
        if primary is not None and primary in self.accounts:
            return self.accounts[primary]
        mail_accounts = self.mail_accounts()
        if len(mail_accounts) == 1:
            return mail_accounts[0]
        if not mail_accounts:
            raise ProtocolError(f"{host_of(self.url)} has no account with mail for this user")
        if primary is None:
            raise ConfigError(
                "the server names no primary account for mail; choose one: " + self._list_accounts()
            )
        raise ProtocolError(
            f"{host_of(self.url)} names a primary account for mail ({printable(primary, 80)}) that"
            f" it does not have; choose one: {self._list_accounts()}"
        )

    def _select(self, selection: str) -> SessionAccount:
        if selection in self.accounts:
            return self.accounts[selection]
        for same in (str, str.casefold):
            named = [a for a in self.accounts.values() if same(a.name) == same(selection)]
            if len(named) == 1:
                return named[0]
            if named:
                raise ConfigError(
                    f"several accounts are named {printable(selection, 80)}; "
                    f"choose one by its id: {self._list_accounts()}"
                )
        raise ConfigError(
            f"there is no account {printable(selection, 80)}; there are: {self._list_accounts()}"
        )

    def _list_accounts(self) -> str:
        shown = [
            f"{printable(account.id, 80)} ({printable(account.name, 80)})"
            for account in self.accounts.values()
        ]
        more = f" and {len(shown) - 20} more" if len(shown) > 20 else ""
        return (", ".join(shown[:20]) or "none") + more


class _AccountDocument(msgspec.Struct, rename="camel"):
    name: str | None = None
    is_personal: bool | None = None
    is_read_only: bool | None = None
    account_capabilities: dict[str, msgspec.Raw] | None = None


class _SessionDocument(msgspec.Struct, rename="camel"):
    api_url: str
    download_url: str
    event_source_url: str | None = None
    username: str | None = None
    state: str | None = None
    accounts: dict[str, msgspec.Raw] | None = None
    primary_accounts: dict[str, msgspec.Raw] | None = None
    capabilities: dict[str, msgspec.Raw] | None = None


async def read_session(
    response: HttpResponse, transport: Transport, *, location: str, rewrite_origin: bool = False
) -> Session:
    """Read a session from an HTTP response. Relative URLs are relative to the URL of the response.

    `location` is what the user named, from `normalize_location`. With `rewrite_origin`, absolute
    URLs get the origin of the response. Raises ProtocolError if this is not a session, if one of
    its URLs must not get credentials, or if its downloadUrl lacks the id of the account or of the
    blob.
    """
    read = partial(
        _parse_session, response, transport, location=location, rewrite_origin=rewrite_origin
    )
    return await run_decoder(read, len(response.content))


def _parse_session(
    response: HttpResponse, transport: Transport, *, location: str, rewrite_origin: bool
) -> Session:
    base = response.url
    what = f"the session of {host_of(base)}"
    if response.content.count(b",") > SESSION_LIMIT.values:
        raise AnswerTooLargeError(f"{what} has more than {SESSION_LIMIT.values:,} values")
    # If this is not JSON, the error quotes the start of the document.
    sent = transport.decode(response, msgspec.Raw, what)
    document = decode_leniently(sent, _SessionDocument, what)
    named = {"apiUrl": document.api_url, "downloadUrl": document.download_url}
    if document.event_source_url:
        named["eventSourceUrl"] = document.event_source_url
    urls: dict[str, str] = {}
    for name, url in named.items():
        source = with_origin_of(base, url) if rewrite_origin else url
        try:
            urls[name] = _absolute(base, source, f"{name} in {what}")
        except ProtocolError as error:
            if name != "eventSourceUrl":
                raise
            _log.info("the server cannot push changes: %s", error)
    _check_download_url(urls["downloadUrl"], what)
    capabilities = _values(document.capabilities)
    origins = {secure_origin(base, naming=f"the URL of {what}", error=ProtocolError): ""}
    for name, url in urls.items():
        origins.setdefault(
            secure_origin(url, naming=name, error=ProtocolError), f"the session's {name}"
        )
    primary_accounts = {
        name: id_
        for name, id_ in _values(document.primary_accounts).items()
        if isinstance(id_, str) and id_
    }
    # Without a usable list of accounts, the primary account is the only one that is known.
    primary = primary_accounts.get(MAIL)
    accounts = document.accounts or ({primary: msgspec.Raw(b"{}")} if primary else {})
    return Session(
        location=location,
        url=base,
        username=document.username or "",
        api_url=urls["apiUrl"],
        download_url=urls["downloadUrl"],
        event_source_url=urls.get("eventSourceUrl"),
        state=document.state or "",
        accounts={id_: _account(id_, sent) for id_, sent in accounts.items() if id_},
        primary_accounts=primary_accounts,
        capabilities=capabilities,
        limits=_limits((document.capabilities or {}).get(CORE)),
        origins=origins,
        blob_ids_are_sha1=any(_is_cyrus(name) for name in capabilities),
        rewrite_origin=rewrite_origin,
    )


def _account(id_: str, sent: msgspec.Raw) -> SessionAccount:
    try:
        account = decode_leniently(sent, _AccountDocument, "an account")
    except ProtocolError:
        account = _AccountDocument()
    return SessionAccount(
        id=id_,
        name=account.name or "",
        is_personal=account.is_personal is not False,
        is_read_only=account.is_read_only is True,
        capabilities=_values(account.account_capabilities),
    )


def _values(sent: Mapping[str, msgspec.Raw] | None) -> dict[str, object]:
    """Decode each value on its own; one that cannot be decoded is None."""
    values: dict[str, object] = {}
    for name, value in (sent or {}).items():
        values[name] = None
        with contextlib.suppress(ProtocolError):
            values[name] = decode(value, object, name)
    return values


def _absolute(base: str, url: str, naming: str) -> str:
    if not url:
        raise ProtocolError(f"{naming} is empty")
    try:
        resolved = urljoin(base, url)
        authority = urlsplit(resolved).netloc
    except ValueError:
        raise ProtocolError(f"{naming} is not a usable URL") from None
    # Credentials are sent to this host, so it must not depend on a variable.
    if "{" in authority:
        raise ProtocolError(f"{naming} has a variable in its host, which is not supported")
    secure_origin(resolved, naming=naming, error=ProtocolError)
    if is_downgrade(base, resolved):
        raise ProtocolError(f"{naming} leads from https:// to http://, which is not allowed")
    return resolved


def _check_download_url(template: str, what: str) -> None:
    # Without these ids, every download would get the same content, or none.
    for variable in ("{accountId}", "{blobId}"):
        if variable not in template:
            raise ProtocolError(f"downloadUrl in {what} lacks the variable {variable}")


def _limits(core: msgspec.Raw | None) -> Limits:
    try:
        sent = decode_leniently(core or msgspec.Raw(b"{}"), Limits, "the limits")
    except ProtocolError:
        sent = Limits()
    return Limits(*(max(1, value) for value in msgspec.structs.astuple(sent)))


def _is_cyrus(capability: str) -> bool:
    if capability.startswith("https://cyrusimap.org/"):
        return True
    try:
        host = urlsplit(capability).hostname or ""
    except ValueError:
        return False
    return host == "fastmail.com" or host.endswith(".fastmail.com")
