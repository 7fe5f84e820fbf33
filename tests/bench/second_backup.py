"""A second backup of an unchanged account: what rsync and Borg read.

Each run has a new mount at the same mountpoint, so that the kernel has nothing cached.
"""

from __future__ import annotations

from tests.bench.figures import Figure, at_most
from tests.bench.fixtures import Fixtures
from tests.bench.harness import bench_directory, run, timed

_NOTHING = at_most(0)
_ONE_MAIL = at_most(1)


def measure(fixtures: Fixtures) -> list[Figure]:
    return [*_rsync(fixtures), *_borg(fixtures)]


def _rsync(fixtures: Fixtures) -> list[Figure]:
    """Repeat the copy to the local tree."""
    cached = fixtures.cached
    with fixtures.mounted(cached.home, cached.account) as (mount, _):
        before = mount.counts()
        seconds = timed("rsync", "-a", f"{mount.path}/", cached.tree)
        done = mount.counts() - before
    what = f"second rsync -a of {cached.mails:,} mails"
    return [
        Figure(what, "s", (seconds,)),
        Figure(f"{what}: READs", "", (done.reads,), _NOTHING),
        Figure(f"{what}: blobs downloaded", "", (done.blobs,), _NOTHING),
    ]


def _borg(fixtures: Fixtures) -> list[Figure]:
    cached = fixtures.cached
    with bench_directory() as directory:
        variables = {
            "BORG_BASE_DIR": str(directory / "borg"),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }
        repository = directory / "repository"
        # Lists each file that Borg does not consider unchanged.
        create = ("borg", "create", "--noflags", "--list", "--filter", "AMCE")
        run("borg", "init", "-e", "none", repository, variables=variables)
        with fixtures.mounted(cached.home, cached.account) as (mount, _):
            run(*create, f"{repository}::first", mount.path, variables=variables)
        with fixtures.mounted(cached.home, cached.account) as (mount, _):
            before = mount.counts()
            second = run(*create, f"{repository}::second", mount.path, variables=variables)
            done = mount.counts() - before
    mails = sum(line.endswith(".eml") for line in second.stderr.splitlines())
    what = f"second borg create of {cached.mails:,} mails"
    return [
        Figure(what, "s", (second.seconds,)),
        Figure(f"{what}: mails read", "", (mails,), _ONE_MAIL),
        Figure(f"{what}: READs", "", (done.reads,)),
        Figure(f"{what}: blobs downloaded", "", (done.blobs,), _NOTHING),
    ]
