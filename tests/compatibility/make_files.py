"""Makes the files in this directory: indexes, caches and snapshots, written by an older jmapfs.

    PYTHONPATH=. python -m tests.compatibility.make_files CHECKOUT DIRECTORY

CHECKOUT is a checkout of that version (commit d5894c1 for the files that are kept here). The Python
has the dependencies of both versions. The test server comes from this checkout.

- `previous_version.tar.xz`: a shared account on a server that tells the truth.
- `lied_to.tar.xz`: an account on a server that sends other bytes for most mail. The older version
  believed it: it corrected the sizes, and kept the bytes.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.compatibility import lied_to
from tests.mounts import Home
from tests.server import ServerProcess, server_process

PREVIOUS = ("127.81.7.3", 18457)


def main() -> None:
    checkout, output = (Path(argument).resolve() for argument in sys.argv[1:])
    with tempfile.TemporaryDirectory() as directory:
        truth = Files(Path(directory) / "truth", checkout)
        with server_process(host=PREVIOUS[0], port=PREVIOUS[1]) as server:
            truth.make(server, "--account", "Ateam")
            truth.pack(output / "previous_version.tar.xz")
        lies = Files(Path(directory) / "lies", checkout)
        with server_process("empty", host=lied_to.HOST, port=lied_to.PORT) as server:
            lied_to.fill(server.control)
            lies.make(server)
            lies.pack(output / "lied_to.tar.xz")


class Files:
    """A home, a mount and snapshots of the older version in `directory`."""

    def __init__(self, directory: Path, checkout: Path) -> None:
        directory.mkdir()
        self.directory = directory
        self.mountpoint = directory / "mnt"
        self.home = Home(directory / "home", "alice@example.org", "secret")
        self.home.variables = {"PYTHONPATH": str(checkout)}
        # Not `-m jmapfs`, which would find this checkout in the working directory.
        self.home.program = (sys.executable, "-P", "-m", "jmapfs")

    def make(self, server: ServerProcess, *options: str) -> None:
        """Read all mail of a mount, write `tree.tsv`, and take a snapshot of the account."""
        self.mountpoint.mkdir()
        self._jmapfs("mount", *options, server.url, self.mountpoint)
        try:
            self._read(server)
            tree = []
            for path in self.mountpoint.rglob("*.eml"):
                status = path.stat()
                name = path.relative_to(self.mountpoint)
                seconds = f"{status.st_mtime_ns / 1e9:.10f}"
                tree.append(f"{name}\t{status.st_ino}\t{status.st_size}\t{seconds}\n")
            (self.directory / "tree.tsv").write_text("".join(sorted(tree)))
        finally:
            self._jmapfs("umount", self.mountpoint)
        self._jmapfs("snapshot", *options, server.url, self.directory / "snapshots")
        self._jmapfs("verify", self.directory / "snapshots")

    def _read(self, server: ServerProcess) -> None:
        """Read each mail until it can be read: the first READ of a wrong size fails."""
        is_lied_to = server.url == lied_to.URL
        # In the order of reading, read-ahead would fetch mails before the lies about them.
        for path in sorted(self.mountpoint.rglob("*.eml"), key=_name, reverse=True):
            if is_lied_to:
                lied_to.tell_lie(server.control, lied_to.number_of(path))
            for _ in range(3):
                with contextlib.suppress(OSError):
                    path.read_bytes()
        if is_lied_to:
            # The snapshot downloads large mail again.
            lied_to.tell_lie(server.control, lied_to.LARGE_LIE)

    def _jmapfs(self, *arguments: str | Path) -> None:
        # In its own directory: the working directory must not be a checkout.
        subprocess.run(
            [*self.home.program, *map(str, arguments)],
            env=self.home.environment,
            cwd=self.directory,
            check=True,
        )

    def pack(self, archive: Path) -> None:
        """Pack the caches, the snapshots and `tree.tsv`."""
        for path in self.home.cache.rglob("*-shm"):
            path.unlink()
        with tarfile.open(archive, "w:xz", preset=9) as tar:
            for name in ("home/cache", "snapshots", "tree.tsv"):
                tar.add(self.directory / name, name, filter=_anonymous)


def _name(path: Path) -> str:
    return path.name


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main()
