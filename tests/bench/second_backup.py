"""A second backup of an account in which nothing has changed: what is read, by rsync and by Borg.

Each run is on a fresh mount at the same mountpoint, so that the kernel answers nothing by itself.
"""

from __future__ import annotations

from tests.bench.figures import Figure, at_most
from tests.bench.stage import Stage
from tests.bench.surroundings import bench_directory, run, timed

_NOTHING = at_most(0)
_ONE_MAIL = at_most(1)


def measure(stage: Stage) -> list[Figure]:
    return [*_rsync(stage), *_borg(stage)]


def _rsync(stage: Stage) -> list[Figure]:
    """Repeat the copy that made the local tree."""
    cached = stage.cached
    with stage.mounted(cached.home, cached.account) as (mount, _):
        before = mount.counts()
        seconds = timed("rsync", "-a", f"{mount.path}/", cached.tree)
        done = mount.counts() - before
    what = f"second rsync -a of {cached.mails:,} mails"
    return [
        Figure(what, "s", (seconds,)),
        Figure(f"{what}: READs", "", (done.reads,), _NOTHING),
        Figure(f"{what}: blobs downloaded", "", (done.blobs,), _NOTHING),
    ]


def _borg(stage: Stage) -> list[Figure]:
    cached = stage.cached
    with bench_directory() as directory:
        variables = {
            "BORG_BASE_DIR": str(directory / "borg"),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }
        repository = directory / "repository"
        # Each file that it does not take as unchanged is told.
        create = ("borg", "create", "--noflags", "--list", "--filter", "AMCE")
        run("borg", "init", "-e", "none", repository, variables=variables)
        with stage.mounted(cached.home, cached.account) as (mount, _):
            run(*create, f"{repository}::first", mount.path, variables=variables)
        with stage.mounted(cached.home, cached.account) as (mount, _):
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
