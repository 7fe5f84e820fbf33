"""A damaged index under a running mount: the account is listed again, and nothing looks partial."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount.changing_account import ChangingAccount
from tests.mounts import Home, Mounted, fixed
from tests.server import ServerProcess
from tests.waits import wait_until

pytestmark = pytest.mark.mount

RECOVERY_SECONDS = 30
MAILS = 60


@pytest.fixture
def server(account: ChangingAccount) -> ServerProcess:
    return account.server


def index_of(home: Home) -> Path:
    [path] = home.cache.rglob("index.sqlite")
    return path


def garble(path: Path) -> None:
    """Write over all pages but the first, through the file."""
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(4096)
        file.write(os.urandom(max(0, size - 4096)))


def garble_beginning(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(os.urandom(4096))


def truncate(path: Path) -> None:
    os.truncate(path, 4096)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def replace(path: Path) -> None:
    other = path.with_suffix(".other")
    other.write_bytes(b"something else" * 1000)
    other.replace(path)


def replace_by_copy(path: Path) -> None:
    """Replace the index by an earlier copy of itself, which lacks its write-ahead log."""
    copy = path.with_suffix(".copy")
    shutil.copy(path, copy)
    copy.replace(path)


def delete(path: Path) -> None:
    path.unlink()


def shown(mount: Mounted) -> dict[str, tuple[tuple[int, ...], bytes]]:
    """Return the attributes and the content of each email."""
    contents = mount.contents()
    return {path: (fixed(status), contents[path]) for path, status in mount.files().items()}


def shown_or_error(mount: Mounted) -> object:
    try:
        return shown(mount)
    except OSError as error:
        return error.errno


def status_error(mount: Mounted) -> str | None:
    error: str | None = mount.status()["error"]
    return error


@contextlib.contextmanager
def recovering(mount: Mounted, *, seconds: float = RECOVERY_SECONDS) -> Iterator[None]:
    """Expect that the tree is the same after the context, and never partial until then."""
    before = shown(mount)
    assert len(before) == MAILS
    yield

    def is_whole() -> bool:
        # The kernel has cached the tree. A comparison reads the index.
        found = shown_or_error(mount)
        assert found == before or isinstance(found, int)
        return found == before and "is complete again" in mount.home.log()

    wait_until(is_whole, seconds)
    assert shown(mount) == before
    assert status_error(mount) is None


@pytest.mark.parametrize(
    "damage",
    [garble, garble_beginning, truncate, empty, replace, replace_by_copy, delete],
    ids=lambda damage: damage.__name__,
)
def test_the_account_is_listed_again(mount: Mounted, damage: Callable[[Path], None]) -> None:
    with recovering(mount):
        damage(index_of(mount.home))
        # SQLite and the kernel have cached this small index. A new connection reads the file.
        mount.ask_status()
    mount.sync()
    assert len(shown(mount)) == MAILS
