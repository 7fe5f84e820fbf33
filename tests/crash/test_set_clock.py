"""The clock of the system is set forwards or back, by a year, while an account is mounted."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.mount.changing_account import ChangingAccount, assert_live, read_state, wait_until_thawed
from tests.mounts import Home, Mounted
from tests.waits import wait_until

pytestmark = pytest.mark.mount

YEAR = 365 * 24 * 3600.0

# The number of seconds by which the clock was set is in a file.
_PROGRAM = """
import time
def shifted(actual=time.time):
    with open({path!r}) as file:
        return actual() + float(file.read())
time.time = shifted
from jmapfs import suspension
def differences(actual=suspension.clock_differences):
    boot, real = actual()
    with open({path!r}) as file:
        return boot, real + float(file.read())
suspension.SuspensionDetector.__init__.__defaults__ = (differences,)
from jmapfs.cli.main import main
main()
"""


@pytest.fixture
def clock(tmp_path: Path) -> Path:
    clock = tmp_path / "clock"
    clock.write_text("0")
    return clock


@pytest.fixture
def mount(tmp_path: Path, clock: Path, account: ChangingAccount) -> Iterator[Mounted]:
    home = Home(tmp_path / "home", "alice@example.org", "secret")
    home.program = (sys.executable, "-c", _PROGRAM.format(path=str(clock)))
    with home.mounted(account.server.url) as mount:
        yield mount


@pytest.mark.parametrize("steps", [(-YEAR, 0.0), (YEAR, 0.0)])
def test_a_clock_that_is_set_stops_nothing(
    mount: Mounted, account: ChangingAccount, clock: Path, steps: tuple[float, ...]
) -> None:
    inbox = mount.path / "Inbox"
    for step in steps:
        before = read_state(mount)
        changed_at = inbox.stat().st_mtime
        names = {path.name for path in inbox.iterdir()}
        new = clock.with_name("new")
        new.write_text(str(step))
        new.rename(clock)
        # Push, and rounds.
        account.churn()
        wait_until(partial(has_changed, inbox, names))
        mount.sync()
        assert_live(
            mount, account, {path: one for path, one in before.items() if path == ".jmapfs.json"}
        )
        assert inbox.stat().st_mtime > changed_at
        # A freeze that is not renewed.
        mount.freeze(1)
        assert mount.is_frozen
        wait_until_thawed(mount)
        # A lease.
        with mount.leased(20) as frozen:
            assert frozen.is_valid()
        assert mount.status()["online"] is True


def has_changed(directory: Path, names: set[str]) -> bool:
    return {path.name for path in directory.iterdir()} != names
