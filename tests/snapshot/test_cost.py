"""What a snapshot of a real account costs, and what it needs."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.relay import Relay
from tests.snapshot.commands import dates, require_whole, take
from tests.stored_mail import StoredMail


def test_a_second_snapshot_receives_little(stored: StoredMail, tmp_path: Path) -> None:
    home = stored.home(tmp_path)
    with Relay(stored.account.http_port) as relay:
        url = stored.account.url.replace(str(stored.account.http_port), str(relay.port))
        first = take(home, url, tmp_path / "dest")
        before = relay.received
        take(home, url, tmp_path / "dest")
        after = relay.received
    # Session, Mailbox/changes, Email/changes.
    assert after - before < 20_000 < first.summary["bytes"] < before


def test_it_needs_no_fuse(few: StoredMail, tmp_path: Path) -> None:
    """Containers have neither the device nor the library."""
    program = (
        "import sys; sys.modules['pyfuse3'] = None;"
        "from jmapfs.cli.main import main; sys.argv[0] = 'jmapfs'; main()"
    )
    home = few.home(tmp_path)
    result = subprocess.run(
        [home.program[0], "-c", program, "snapshot", few.account.url, tmp_path / "dest"],
        env=home.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    [date] = dates(tmp_path / "dest")
    require_whole(tmp_path / "dest" / date)
