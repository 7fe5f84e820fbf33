"""How far a request travels: the modules, worker threads and HTTP requests of single actions.

    python -m tests.bench.hops [--modules]
    python -m tests.bench.hops --static [--modules]

It runs the real command, on a real mount where one is needed, against the test server. It knows
the command line of jmapfs but not the layout of the code, so it can compare two layouts.
`tests.bench.tracer` defines when a module is entered. The window of an action ends when jmapfs
has been quiet for a second, so it includes what the action causes in the background.

--static counts the modules, their lines, and the modules that a single other module imports.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import re
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.import_graph import ImportGraph
from tests.mounts import Home, command
from tests.server.control_client import ControlClient
from tests.server.counts import Counts
from tests.server.process import server_process
from tests.waits import wait_until

_PACKAGE = "jmapfs"
_USERNAME, _PASSWORD = "alice@example.org", "secret"
_SECONDS = 60
_TRACER = (sys.executable, "-m", "tests.bench.tracer")
_LIBRARIES = ("trio", "httpx", "dns", "pyfuse3")
_COMMANDS = (("--help",), ("umount", "/nothing"), ("prefetch", "/nothing"))
_IMPORT = re.compile(r"^import time: +\d+ \| +\d+ \| +(\S+)$", re.MULTILINE)
_NEW_MAIL = b"From: bob@example.org\r\nSubject: New\r\n\r\nHello\r\n"


@dataclass(frozen=True)
class Trace:
    """What one action went through."""

    action: str
    modules: Sequence[str]
    jobs: Mapping[str, int]
    counts: Counts

    def lines(self) -> Iterator[str]:
        yield f"\n{self.action}"
        yield from (f"  {name}" for name in self.modules)
        yield "  worker threads:"
        yield from (f"    {count} × {name}" for name, count in self.jobs.items())
        yield "  JMAP methods:"
        yield from (f"    {count} × {name}" for name, count in self.counts.methods.items())


class Connection:
    """The connection to a traced process."""

    def __init__(self, own: socket.socket, control: ControlClient) -> None:
        own.settimeout(_SECONDS)
        self._control = control
        self._socket = own
        self._lines = own.makefile("rb")

    def trace(self, action: str, act: Callable[[], object]) -> Trace:
        """Trace an action and what it causes, from a quiet moment on."""
        self._ask(b"end\n")
        self._ask(b"begin\n")
        self._control.reset_counts()
        act()
        self._socket.sendall(b"end\n")
        return self.receive(action)

    def receive(self, action: str) -> Trace:
        """Read the record that the process sends after `end`, or when it ends."""
        record = json.loads(self._lines.readline())
        return Trace(action, record["modules"], record["jobs"], self._control.counts())

    def _ask(self, request: bytes) -> None:
        self._socket.sendall(request)
        self._lines.readline()


@contextlib.contextmanager
def _traced(
    home: Home, control: ControlClient, *arguments: str | Path
) -> Iterator[tuple[subprocess.Popen[bytes], Connection]]:
    own, other = socket.socketpair()
    errors = home.directory / "stderr"
    with own, other, errors.open("wb") as stderr:
        process = subprocess.Popen(
            [*_TRACER, str(other.fileno()), *map(str, arguments)],
            env=home.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=[other.fileno()],
        )
        # The connection must break when the process ends.
        other.close()
        try:
            yield process, Connection(own, control)
        except Exception as error:
            error.add_note(errors.read_text())
            raise
        else:
            if process.wait(_SECONDS):
                raise RuntimeError(errors.read_text())
        finally:
            process.kill()
            process.wait()


def _mount_actions(home: Home, url: str, control: ControlClient) -> list[Trace]:
    mountpoint = home.directory / "mnt"
    mountpoint.mkdir()
    options = ("--foreground", "--poll-interval", "3600")
    with _traced(home, control, "mount", *options, url, mountpoint) as (process, connection):
        try:
            wait_until(lambda: process.poll() is not None or mountpoint.is_mount(), _SECONDS)
            # Fill the kernel's caches: the actions then ask only for what they need.
            mails = [path for path in sorted(mountpoint.rglob("*.eml")) if path.stat().st_size]
            inbox = control.dump().mailbox("Inbox").id
            traces = [
                connection.trace("idle for 3 s", lambda: time.sleep(3)),
                connection.trace("cold READ", lambda: command("cat", mails[0])),
                connection.trace("new mail", lambda: control.add_email(_NEW_MAIL, [inbox])),
            ]
            if traces[1].counts.blob_reads != 1:
                raise RuntimeError("the READ did not download exactly one mail")
            if len(list(mountpoint.rglob("*.eml"))) != len(mails) + 1:
                raise RuntimeError("the mount does not show the new mail")
        finally:
            home.run("umount", mountpoint)
    return traces


def _second_snapshot(home: Home, url: str, control: ControlClient) -> Trace:
    destination = home.directory / "snapshots"
    first = home.run("snapshot", url, destination)
    if first.exit_code:
        raise RuntimeError(first.stderr)
    control.reset_counts()
    with _traced(home, control, "snapshot", url, destination) as (_, connection):
        trace = connection.receive("second snapshot")
    if control.counts().blob_reads:
        raise RuntimeError("the second snapshot downloaded mail")
    return trace


def _traces() -> list[Trace]:
    with (
        server_process("sample", username=_USERNAME, password=_PASSWORD) as server,
        tempfile.TemporaryDirectory(prefix="jmapfs-hops-") as directory,
    ):
        # Homes of their own: the snapshot finds neither an index nor a mount that follows.
        mounts, snapshots = (
            Home(Path(directory, name), _USERNAME, _PASSWORD) for name in ("mounts", "snapshots")
        )
        return [
            *_mount_actions(mounts, server.url, server.control),
            _second_snapshot(snapshots, server.url, server.control),
        ]


def _print_traces(traces: Sequence[Trace], *, modules: bool) -> None:
    print(f"{'action':<18} {'modules':>7} {'worker threads':>14}  HTTP requests")
    for trace in traces:
        requests = ", ".join(f"{count} {place}" for place, count in trace.counts.endpoints.items())
        print(
            f"{trace.action:<18} {len(trace.modules):>7} {sum(trace.jobs.values()):>14}"
            f"  {requests or 'none'}"
        )
    if modules:
        print("\n".join(line for trace in traces for line in trace.lines()))


def _print_imports() -> None:
    """Print how long commands with nothing to do take, and what they import.

    No mount is at the path, so `umount` and `prefetch` fail, but only after all their imports.
    """
    print(f"\n{'command':<18} {'best of 5':>9} {'CPU':>8} {'modules':>7}  libraries")
    for arguments in _COMMANDS:
        wall, cpu = map(min, zip(*(_run_times(arguments) for _ in range(5)), strict=True))
        result = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", _PACKAGE, *arguments],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        imported = set(_IMPORT.findall(result.stderr))
        own = sum(name.partition(".")[0] == _PACKAGE for name in imported)
        libraries = ", ".join(name for name in _LIBRARIES if name in imported)
        name = " ".join(arguments)
        times = f"{wall * 1000:>6.0f} ms {cpu * 1000:>5.0f} ms"
        print(f"{name:<18} {times} {own:>7}  {libraries or 'none'}")


def _run_times(arguments: Sequence[str]) -> tuple[float, float]:
    """Return how long a command took and how long it used a CPU, in seconds."""
    start, used = time.perf_counter(), _children_cpu()
    subprocess.run(
        [sys.executable, "-m", _PACKAGE, *arguments],
        capture_output=True,
        timeout=_SECONDS,
        check=False,
    )
    return time.perf_counter() - start, _children_cpu() - used


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _print_static(*, modules: bool) -> None:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise RuntimeError(f"{_PACKAGE} cannot be imported")
    graph = ImportGraph(Path(spec.origin).parent)
    single = {name: users for name, users in graph.importers.items() if len(users) == 1}
    names = Counter(name.rpartition(".")[2] for name in graph.modules)
    shared = sum(count for count in names.values() if count > 1)
    for what, count in (
        ("lines", graph.lines),
        ("modules", len(graph.modules)),
        ("modules and __init__", len(graph.modules | graph.packages)),
        ("modules with one importer", len(single)),
        ("modules sharing a name", shared),
    ):
        print(f"{what:<26} {count:>6}")
    if modules:
        print("\nModules with one importer")
        for name, users in sorted(single.items()):
            print(f"  {name} ← {', '.join(users)}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.hops", description=__doc__)
    parser.add_argument("--static", action="store_true", help="count modules, run nothing")
    parser.add_argument("--modules", action="store_true", help="list the modules too")
    options = parser.parse_args()
    if options.static:
        _print_static(modules=options.modules)
    else:
        _print_traces(_traces(), modules=options.modules)
        _print_imports()


if __name__ == "__main__":
    main()
