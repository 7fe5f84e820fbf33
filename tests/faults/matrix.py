"""Runs each operation with each fault, once and permanently, many at the same time.

Waiting costs no CPU, so dozens of mounts wait for their deadlines together. Each trial has its own
server, account, proxy and user.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.faults.account import FaultyAccount
from tests.faults.faults import FAULTS, Fault
from tests.faults.operations import GROUPS, Cell, Trial
from tests.faults.proxy import fault_proxy
from tests.mounts import Home
from tests.server import server_process

ALL_CASES = tuple(itertools.product(FAULTS, (False, True)))

_USER, _PASSWORD = "alice@example.org", "secret"


@dataclass(frozen=True)
class Result:
    """The cell of a fault."""

    fault: str
    permanent: bool
    cell: Cell

    @property
    def key(self) -> tuple[str, str, bool]:
        return self.fault, self.cell.operation, self.permanent


@dataclass
class Matrix:
    """All trials, or some of them.

    `directory` is for files, `certificate` for the faults that need TLS. A case is a fault, and
    whether it is permanent. The groups of `operations` are run, by default all.
    """

    directory: Path
    certificate: Path | None
    cases: Collection[tuple[Fault, bool]] = ALL_CASES
    operations: Collection[str] = ()

    def run(self, parallel: int) -> Iterator[Result]:
        """Run the trials, `parallel` at a time, and yield the results as they come."""
        with ThreadPoolExecutor(parallel) as threads:
            trials = [threads.submit(trial) for trial in self._trials()]
            for trial in as_completed(trials):
                yield from trial.result()

    def _trials(self) -> Iterable[Callable[[], list[Result]]]:
        # Those that wait for their deadlines first; the others fill the time until then.
        cases = sorted(self.cases, key=lambda case: (not case[1], not case[0].waits))
        for group, operations in GROUPS:
            names = {operation.name for operation in operations}
            if not self.operations or names.intersection(self.operations):
                for fault, permanent in cases:
                    yield partial(self._run_trial, group, fault, permanent=permanent)

    def _run_trial(
        self, group: Callable[[Trial], None], fault: Fault, *, permanent: bool
    ) -> list[Result]:
        certificate = self.certificate if fault.tls else None
        operations = next(operations for each, operations in GROUPS if each is group)
        cells: list[Cell] = []
        directory = Path(tempfile.mkdtemp(dir=self.directory, prefix="trial-"))
        home = Home(directory, _USER, _PASSWORD)
        if certificate is not None:
            home.variables["SSL_CERT_FILE"] = str(certificate)
        try:
            with (
                server_process("empty", sha1_blob_ids=fault.needs_sha1) as server,
                fault_proxy(server.url, certificate) as proxy,
            ):
                group(Trial(fault, permanent, proxy, FaultyAccount(server), home, cells))
        except Exception:  # noqa: BLE001 - one trial must not end the others
            cells = cells or [Cell(operations[0].name)]
            cells[-1].problems.append(traceback.format_exc() + home.log()[-3000:])
        for mountpoint in directory.rglob("mnt"):
            subprocess.run(
                ["fusermount3", "-u", "-z", mountpoint], check=False, capture_output=True
            )
        shutil.rmtree(directory, ignore_errors=True)
        missing = [Cell(each.name, "not run", problems=["not run"]) for each in operations]
        cells += missing[len(cells) :]
        return [Result(fault.name, permanent, cell) for cell in cells]
