"""The control protocol: the requests that a running mount answers, and its replies.

A connection carries one request and one reply, each a line of JSON:

    {"command": "freeze", "seconds": 30.0, "join": true}
    {"answer": {…}}   or   {"error": "…", "exit_code": 9}

Each request class names the type of its reply: `Request[Lease]` is answered with a `Lease`.
Only the owner of the mount and root are answered. The kernel says which user has connected.

A *lease* keeps the tree frozen. A lease expires unless it is renewed. The mount thaws when its last
lease has expired or was given back.
"""

from typing import Annotated, Any, ClassVar, Final, Generic, Self, TypeVar, get_args

import msgspec

from jmapfs.errors import JmapfsError
from jmapfs.index.rows import EmailSlice
from jmapfs.tree.export import ExportedMailbox
from jmapfs.tree.name_changes import NameChange
from jmapfs.tree.status_file import BadEmailStatus, ShortfallStatus

PREFETCH_STEP: Final = 2000
"""How many emails a request to prefetch may name."""

LEASE_SECONDS: Final = 30.0
"""The duration of a lease that a process renews regularly."""

RENEWAL_SECONDS: Final = 10.0
"""How often such a process renews its lease."""

LONGEST_WATCH: Final = 300.0
"""How many seconds a request waits for changes at most."""

_LARGEST_PAGE: Final = 10_000

_Inode = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Inodes = Annotated[list[_Inode], msgspec.Meta(max_length=PREFETCH_STEP)]

# --- Replies


class Done(msgspec.Struct, frozen=True):
    """The request was carried out."""


class CacheStatus(msgspec.Struct, frozen=True):
    """The disk cache of an account; `bytes` and `limit` in bytes, `hits` since the mount began."""

    bytes: int
    limit: int
    blobs: int
    hits: int


class ReadaheadStatus(msgspec.Struct, frozen=True):
    """How many emails were read ahead: downloaded, and taken from the disk cache."""

    downloaded: int
    recalled: int


class HttpStatus(msgspec.Struct, frozen=True):
    """The requests to the server since the mount began, and how much they downloaded."""

    requests: int
    blobs: int
    bytes: int


class ContentStatus(msgspec.Struct, frozen=True):
    """How many contents were confirmed with another size than expected, and how many refused."""

    confirmed: int = 0
    refused: int = 0


class StaleStatus(msgspec.Struct, frozen=True):
    """Why a tree does not follow its account; see `index.rows.StaleTree`."""

    since: str
    gone: int
    total: int
    reset: bool
    reason: str


class AccountStatus(msgspec.Struct, frozen=True):
    """The status of one account; docs/commands.md describes the members.

    Members that an earlier version did not have need a default value.
    """

    account: str
    account_id: str
    server: str
    online: bool
    since: str
    error: str | None
    leads: bool
    push: bool
    state: str
    last_sync: str
    last_check: str | None
    emails: int
    mailboxes: int
    cache: CacheStatus
    ahead: ReadaheadStatus
    http: HttpStatus
    stale: StaleStatus | None = None
    content: ContentStatus = ContentStatus()
    location: str = ""
    bad: tuple[BadEmailStatus, ...] = ()
    bad_count: int = 0
    shortfall: ShortfallStatus | None = None
    waiting: str | None = None
    failures: int = 0
    next_try: str | None = None


class FreezeStatus(msgspec.Struct, frozen=True):
    """A freeze; `until` is None while a process keeps the tree frozen without a time limit."""

    since: str
    until: str | None


class PagesStatus(msgspec.Struct, frozen=True):
    """How many files were stored in the kernel's page cache."""

    stored: int


class MountStatus(msgspec.Struct, frozen=True):
    """The status of a mount; `all_accounts` says that it was mounted with `--all-accounts`."""

    mountpoint: str
    pid: int
    frozen: FreezeStatus | None
    fuse: dict[str, int]
    pages: PagesStatus
    accounts: list[AccountStatus]
    all_accounts: bool

    @property
    def online(self) -> bool:
        """Whether the servers of all accounts are reachable."""
        return all(account.online for account in self.accounts)

    def document(self) -> dict[str, Any]:
        """Return what `jmapfs status --json` prints.

        The members of a single account are at the top level.
        """
        document: dict[str, Any] = msgspec.to_builtins(self)
        accounts = document.pop("accounts")
        if document.pop("all_accounts"):
            return document | {"accounts": accounts, "online": self.online}
        single: dict[str, Any] = accounts[0]
        return document | single


class Lease(msgspec.Struct, frozen=True):
    """A lease on the frozen tree; `since` is when the freeze began, in seconds since 1970."""

    id: str
    since: float


class Thawed(msgspec.Struct, frozen=True):
    """Whether the freeze, or the given lease, still existed at the time of the request."""

    was_frozen: bool


class TreeDescription(msgspec.Struct, frozen=True):
    """The part of a frozen tree that is at and below a directory.

    `root` is the directory of the account, and empty in a mount of one account. `directory` is a
    path below `root`. `consistent` is false if the tree is between two states of the account.
    `mails` is an estimate if `directory` is not empty. `synced_at` is in seconds since 1970.
    `epoch` identifies the time during which the server's ids keep their meaning (`blob_keys`).
    `location` and `origins` are those of the account's identity (`jmap.identity`).
    `bad` and `shortfall` are about emails that are in this part, or may be in it. `compared_at` is
    when the numbers of emails were last compared with those of the server; 0 if they never were.
    """

    server: str
    account_id: str
    account_name: str
    username: str
    email_state: str
    synced_at: float
    consistent: bool
    root: str
    directory: str
    mails: int
    mailboxes: list[ExportedMailbox]
    epoch: str = ""
    blob_ids_are_sha1: bool = False
    location: str = ""
    origins: tuple[str, ...] = ()
    bad: tuple[BadEmailStatus, ...] = ()
    shortfall: ShortfallStatus | None = None
    compared_at: float = 0.0


class Failure(msgspec.Struct, frozen=True):
    """An error: its message in one line, and its exit code."""

    error: str
    exit_code: int

    @classmethod
    def of(cls, error: Exception) -> Self:
        """Return the description of an error."""
        if isinstance(error, JmapfsError):
            return cls(str(error), error.exit_code)
        return cls(f"a bug, {type(error).__name__}: see the log", 1)


class CacheUse(msgspec.Struct, frozen=True):
    """How many bytes of an account's cache some emails take, and the capacity of the cache.

    `limit` is the capacity that the cache has if its disk has space enough. Earlier versions do not
    send it.
    """

    account: str
    wanted: int
    room: int
    limit: int = 0


class MissingMails(msgspec.Struct):
    """The emails (inode and size in bytes) that are not in the cache.

    There was no time to check the emails in `unchecked`. The emails in `gone` are no longer in the
    tree. For each account, `caches` has the space that all checked emails take.
    """

    missing: list[tuple[int, int]] = []
    unchecked: list[int] = []
    gone: list[int] = []
    caches: list[CacheUse] = []


class PrefetchedMails(msgspec.Struct):
    """The emails (inodes) that are not in the cache after a request to prefetch them.

    There was no time for the emails in `left`. The emails in `unreached` failed for a reason that
    does not depend on the email, such as an unreachable server; `obstacle` is this reason. The
    emails in `refused` cannot be downloaded; `refusal` is the reason for the first email. The
    emails in `gone` are no longer in the tree. `caches` has the capacities that are left now.
    `received` is how many bytes have arrived.
    """

    left: list[int] = []
    unreached: list[int] = []
    obstacle: Failure | None = None
    refused: list[int] = []
    refusal: Failure | None = None
    gone: list[int] = []
    caches: list[CacheUse] = []
    received: int = 0


class Changes(msgspec.Struct, frozen=True):
    """The names that have changed up to `position`, as paths relative to the mountpoint.

    Below the directories in `unknown`, which are accounts or the mountpoint (an empty path),
    anything may have changed.
    """

    position: str
    changes: list[NameChange] = []
    unknown: list[str] = []


# --- Requests

_R = TypeVar("_R")


class Request(msgspec.Struct, Generic[_R], frozen=True, tag_field="command"):
    """A request whose reply is an `_R`; `timeout` is how many seconds a client waits for it."""

    timeout: ClassVar[float] = 10.0

    @classmethod
    def reply_type(cls) -> type[_R]:
        """Return the type of the reply."""
        reply: type[_R] = get_args(vars(cls)["__orig_bases__"][0])[0]
        return reply


class StatusRequest(Request[MountStatus], frozen=True, tag="status"):
    """Report the status."""


class SyncRequest(Request[Done], frozen=True, tag="sync"):
    """Ask the server for changes; the reply comes when the tree and the kernel have the changes.

    If `path` is given, only the account whose directory contains it is asked. With
    `accept_deletions`, the tree follows the account even if most of its mail is gone. `suspects`
    are the ids of emails whose content the server does not find, or that have other values there:
    they are compared with the server. With `retry_login`, a secret that the server refused is sent
    again, and a pause that the server has asked for ends.
    """

    # The mount gives up a little earlier than the client.
    timeout: ClassVar[float] = 630.0
    path: str = ""
    accept_deletions: bool = False
    suspects: list[str] = []
    retry_login: bool = False


class FreezeRequest(Request[Lease], frozen=True, tag="freeze"):
    """Freeze the tree under a lease of `seconds`.

    Renewals do not extend the lease beyond `limit` seconds from the request. If the tree is frozen
    already, the reply is an error. With `join`, the reply is then a lease on that freeze.
    """

    # A freeze can take long: the kernel may have to drop a hundred thousand names.
    timeout: ClassVar[float] = 310.0
    seconds: float
    limit: float | None = None
    join: bool = False


class RenewRequest(Request[Lease], frozen=True, tag="renew"):
    """Renew a lease: it lasts for `seconds` from now."""

    # The daemon may be busy. After this time without a reply, the lease has expired anyway.
    timeout: ClassVar[float] = LEASE_SECONDS
    lease: str
    seconds: float


class ThawRequest(Request[Thawed], frozen=True, tag="thaw"):
    """Give back one `lease`; without `lease`, end the freeze with all its leases."""

    timeout: ClassVar[float] = 300.0
    lease: str | None = None


class DescribeRequest(Request[TreeDescription], frozen=True, tag="describe"):
    """Describe the frozen tree at and below a path relative to the mountpoint."""

    timeout: ClassVar[float] = 300.0
    lease: str
    path: str


class MailsRequest(Request[EmailSlice], frozen=True, tag="mails"):
    """List about `count` emails at and below a path of the frozen tree, beginning at a position."""

    timeout: ClassVar[float] = 300.0
    lease: str
    path: str
    position: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    count: Annotated[int, msgspec.Meta(ge=1, le=_LARGEST_PAGE)]


class MissingRequest(Request[MissingMails], frozen=True, tag="missing"):
    """Find emails that are not cached; with `read`, read the cached emails to find damage.

    A reply takes a second or two. The reply names the emails for which there was no time. The
    client sends another request for these emails. The mount remembers nothing between two requests.
    """

    # The daemon may be busy.
    timeout: ClassVar[float] = 120.0
    inodes: _Inodes
    read: bool = False


class PrefetchRequest(Request[PrefetchedMails], frozen=True, tag="prefetch"):
    """Download the emails that are not cached, for about a second; see `MissingRequest`."""

    timeout: ClassVar[float] = 120.0
    inodes: _Inodes


class ChangesRequest(Request[Changes], frozen=True, tag="changes"):
    """Wait at most `seconds` for changes of names after a position, and report them.

    Without a position, the reply comes at once, and has the current position. The reply reports
    what the kernel has been told, so a program that runs then finds the new names.
    """

    timeout: ClassVar[float] = LONGEST_WATCH + 30
    after: str | None = None
    seconds: Annotated[float, msgspec.Meta(ge=0, le=LONGEST_WATCH)] = LONGEST_WATCH


AnyRequest = (
    StatusRequest
    | SyncRequest
    | FreezeRequest
    | RenewRequest
    | ThawRequest
    | DescribeRequest
    | MailsRequest
    | MissingRequest
    | PrefetchRequest
    | ChangesRequest
)


class ReplyLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """The line that carries a reply: `answer`, or `error` with its exit code."""

    answer: msgspec.Raw = msgspec.Raw()
    error: str | None = None
    exit_code: int = 0
