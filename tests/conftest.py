"""What all tests share: options, markers, the Cyrus server, and the check that nothing leaks.

- `--long` also runs the tests marked `long`.
- `--fail-on-skip` fails those marked `mount` or `cyrus` that would be skipped for what the machine
  lacks: in CI a green run means that they ran.
- A test that uses one of the Cyrus fixtures is marked `cyrus` by that.
- After each test there must be no FUSE mount, no process and no open file that was not there
  before it. What is found is cleared away, so that the tests after it stand on firm ground.

A session or module fixture that is asked for by name is there before the check begins. One that
is fetched with `request.getfixturevalue` in a test is not: what it opens counts as the test's.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Generator, Iterator

import pytest
from hypothesis import settings

from tests import cyrus as cyrus_server
from tests.cyrus import Account, Cyrus, running_cyrus
from tests.leaks import RUN, RUN_VARIABLE, no_leaks

__all__ = ["no_leaks"]

_CYRUS_FIXTURES = {"cyrus", "cyrus_account", "fresh_account", "private_cyrus"}

# An example that takes long says nothing of the code: the machine may have other things to do.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# --- Options and markers


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the tests marked long")
    parser.addoption(
        "--fail-on-skip", action="store_true", help="a skipped mount or cyrus test has failed"
    )


def pytest_configure() -> None:
    os.environ[RUN_VARIABLE] = RUN


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if _CYRUS_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("cyrus")
        for marker, reason in (("mount", _no_mounts()), ("cyrus", cyrus_server.missing())):
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
    if not config.getoption("--long"):
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


# First, so that it sees the report after pytest itself has made an xfail of it.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    del call
    report = yield
    wanted = item.get_closest_marker("mount") or item.get_closest_marker("cyrus")
    strict = item.config.getoption("--fail-on-skip")
    if report.skipped and strict and wanted and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be: {reason}"
    return report


def _no_mounts() -> str | None:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is not there, or not for this user"
    if not shutil.which("fusermount3"):
        return "fusermount3 is not there (scripts/setup installs it)"
    return None


# --- Cyrus


@pytest.fixture(scope="session")
def cyrus() -> Iterator[Cyrus]:
    """The server that all tests share: leave it running, and keep to accounts of your own."""
    with running_cyrus() as server:
        yield server


@pytest.fixture
def private_cyrus() -> Iterator[Cyrus]:
    """A server for one test, to be stopped, started and paused. It takes 0.1 s."""
    with running_cyrus() as server:
        yield server


@pytest.fixture(scope="session")
def fresh_account(cyrus: Cyrus) -> Callable[[], Account]:
    """Make an empty account, also for a fixture of a wider scope than a test."""
    numbers = itertools.count(1)
    return lambda: cyrus.add_user(f"user{next(numbers)}")


@pytest.fixture
def cyrus_account(fresh_account: Callable[[], Account]) -> Account:
    """An empty account that no other test knows."""
    return fresh_account()
