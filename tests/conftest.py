"""Options, markers and fixtures of all tests.

- `--long` also runs the tests marked `long`.
- `--fail-on-skip` fails tests marked `mount`, `cyrus` or `james` that are skipped because the
  machine lacks a program: in CI, success means that they ran.
- A test that uses a Cyrus fixture is marked `cyrus`, one that uses a James fixture `james`.
- A test that uses `mail_server` or `mail_account` runs once with each server.
- A test fails if it leaves a FUSE mount, a process or an open file behind. These are removed, so
  that they do not affect later tests.

The check starts after the session and module fixtures among the parameters of a test. A fixture
from `request.getfixturevalue` starts later, so its open files count as leaks of the test.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import ssl
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from jmapfs.jmap import connections
from tests import cyrus as cyrus_server
from tests import james as james_server
from tests.cyrus import Account, Cyrus, running_cyrus
from tests.james import James, running_james
from tests.leaks import RUN, RUN_VARIABLE, no_leaks
from tests.mail_server.account import MailAccount
from tests.mail_server.server import MailServer
from tests.mounts import commands
from tests.server.launcher import launcher

__all__ = ["no_leaks"]

_SERVER_FIXTURES = {
    "cyrus": {"cyrus", "cyrus_account", "fresh_account", "private_cyrus"},
    "james": {"james", "james_account", "private_james"},
}
_REQUIREMENTS = ("mount", "cyrus", "james")

_USER_NUMBERS = itertools.count(1)

# A slow example does not mean slow code: the machine may be busy.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# --- Options and markers


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the tests marked long")
    parser.addoption(
        "--fail-on-skip", action="store_true", help="fail skipped mount, cyrus and james tests"
    )


def pytest_configure() -> None:
    os.environ[RUN_VARIABLE] = RUN


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    missing = (_no_mounts(), cyrus_server.missing(), james_server.missing())
    reasons = dict(zip(_REQUIREMENTS, missing, strict=True))
    for item in items:
        for server, fixtures in _SERVER_FIXTURES.items():
            if fixtures.intersection(getattr(item, "fixturenames", ())):
                item.add_marker(server)
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
    if not config.getoption("--long"):
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
    # The slowest files first: the quick ones then fill the time until all processes end.
    slow = {item.path for item in items if any(map(item.get_closest_marker, _REQUIREMENTS))}
    items.sort(key=lambda item: item.path not in slow)


# First, to see the report after pytest has converted it to an xfail.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    del call
    report = yield
    required = any(item.get_closest_marker(marker) for marker in _REQUIREMENTS)
    strict = item.config.getoption("--fail-on-skip")
    if report.skipped and strict and required and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped, but --fail-on-skip is set: {reason}"
    return report


def _no_mounts() -> str | None:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is missing or not accessible"
    if not shutil.which("fusermount3"):
        return "fusermount3 is missing (scripts/setup installs it)"
    return None


# --- Of the session


@pytest.fixture(scope="session", autouse=True)
def _forkers() -> None:
    """Start what forks servers and commands before any test, or it would be a leak of the first."""
    launcher()
    commands()


@pytest.fixture(scope="session", autouse=True)
def loaded_certificates() -> Iterator[Callable[[Path | None], ssl.SSLContext]]:
    """Load the system's certificates once: it takes 40 ms, and few tests use TLS.

    Gives the function that loads them each time.
    """
    load = connections._tls_context
    shared = load(None)

    def tls_context(ca_file: Path | None) -> ssl.SSLContext:
        named = ca_file or {"SSL_CERT_FILE", "SSL_CERT_DIR"} & os.environ.keys()
        return load(ca_file) if named else shared

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connections, "_tls_context", tls_context)
        yield load


# --- Cyrus


@pytest.fixture(scope="session")
def cyrus() -> Iterator[Cyrus]:
    """The server of all tests: do not stop it, and use your own accounts."""
    with running_cyrus() as server:
        yield server


@pytest.fixture
def private_cyrus() -> Iterator[Cyrus]:
    """A server for one test, which may stop, start and pause it. It starts in 0.1 s."""
    with running_cyrus() as server:
        yield server


@pytest.fixture(scope="session")
def fresh_account(cyrus: Cyrus) -> Callable[[], Account]:
    """Create empty accounts, also in fixtures of a wider scope than a test."""
    return lambda: cyrus.add_user(f"user{next(_USER_NUMBERS)}")


@pytest.fixture
def cyrus_account(fresh_account: Callable[[], Account]) -> Account:
    """An empty account for one test."""
    return fresh_account()


# --- James


@pytest.fixture(scope="session")
def james() -> Iterator[James]:
    """The server of all tests: do not stop it, and use your own accounts."""
    with running_james() as server:
        yield server


@pytest.fixture(scope="module")
def private_james() -> Iterator[James]:
    """A server for the tests of one file, which may stop, reset and pause it.

    Its start takes seconds. A test resets it if it needs ids from 1.
    """
    with running_james() as server:
        yield server


@pytest.fixture
def james_account(james: James) -> MailAccount:
    """An empty account for one test."""
    return james.add_user(f"user{next(_USER_NUMBERS)}")


# --- Each of them


@pytest.fixture(
    scope="session",
    params=[pytest.param(name, marks=getattr(pytest.mark, name)) for name in _SERVER_FIXTURES],
)
def mail_server(request: pytest.FixtureRequest) -> MailServer:
    """The server of all tests, as `cyrus` and `james`: do not stop it."""
    server: MailServer = request.getfixturevalue(request.param)
    return server


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=getattr(pytest.mark, name)) for name in _SERVER_FIXTURES],
)
def private_mail_server(request: pytest.FixtureRequest) -> Iterator[MailServer]:
    """A server for the tests of one file, which may stop, reset and pause it."""
    with running_cyrus() if request.param == "cyrus" else running_james() as server:
        yield server


@pytest.fixture(scope="session")
def new_mail_account(mail_server: MailServer) -> Callable[[], MailAccount]:
    """Create empty accounts of each server, also in fixtures of a wider scope than a test."""
    return lambda: mail_server.add_user(f"user{next(_USER_NUMBERS)}")


@pytest.fixture
def mail_account(new_mail_account: Callable[[], MailAccount]) -> MailAccount:
    """An empty account of each server for one test."""
    return new_mail_account()


# --- Time


@pytest.fixture
def steady_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the random part of pauses."""
    monkeypatch.setattr(random, "uniform", lambda low, high: (low + high) / 2)
