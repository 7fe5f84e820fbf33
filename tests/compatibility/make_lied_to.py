"""Makes lied_to.tar.xz: the cache and a snapshot of an older jmapfs that has believed a server.

    python -m tests.compatibility.make_lied_to CHECKOUT OUTPUT.tar.xz

CHECKOUT is a checkout of that version (commit d5894c1 for the file that is kept here). The test
server lies about one mail in each way. A mount reads these mails. That version corrects their sizes
and keeps the wrong content, also in the snapshot.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.compatibility.test_previous_version import HOST, PORT, URL
from tests.mounts import Home
from tests.server import server_process

LIES = ("html", "empty", "short", "long", "other-mail")


def main() -> None:
    checkout, output = (str(Path(argument).resolve()) for argument in sys.argv[1:])
    with tempfile.TemporaryDirectory() as name, server_process(host=HOST, port=PORT) as server:
        directory = Path(name)
        home = Home(directory / "home", "alice@example.org", "secret", {"PYTHONPATH": checkout})
        # The commands of the older version are run in a directory without a package of this name.
        os.chdir(directory)
        snapshots = directory / "snapshots"
        with server.control.account("Ateam") as control:
            emails = control.dump().emails
        for lie, email in zip(LIES, emails, strict=False):
            server.control.set_quirks(lie=lie, lie_blob_ids=[email.blob_id])
            # A new mount for each mail: otherwise the others are read ahead.
            with home.mounted(URL, "--account", "Ateam", path=directory / "mnt") as mount:
                when = "".join(filter(str.isdigit, email.received_at))
                [path, *_] = mount.path.rglob(f"{when[:8]}-{when[8:14]}_*.eml")
                with contextlib.suppress(OSError):
                    path.read_bytes()
                print(lie, email.size, path.stat().st_size, len(path.read_bytes()), path.name)
        server.control.reset_quirks()
        result = home.run("snapshot", "--account", "Ateam", URL, snapshots)
        assert result.exit_code == 0, result.stderr
        assert home.run("verify", snapshots).exit_code == 0
        with tarfile.open(output, "w:xz") as archive:
            for place in ("home/cache", "snapshots"):
                archive.add(directory / place, place, filter=_portable)


def _portable(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return None if member.name.endswith("-shm") else member


if __name__ == "__main__":
    main()
