"""The jars of James: resolved once from Maven Central, and verified against a lock file.

`pom.xml` pins the version of James. `jars.sha256` pins every jar with its SHA-256, in the format of
`sha256sum`. Maven also verifies the checksums of the repository. The directory of the jars is named
after the lock file, so that the jars of another lock file are resolved again.

To change the version, edit `pom.xml` and run `scripts/james resolve --lock`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

POM = Path(__file__).with_name("pom.xml")
LOCK = Path(__file__).with_name("jars.sha256")

RESOLUTION_SECONDS = 900.0

_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"


class JarsError(Exception):
    """The jars cannot be resolved or are not those of the lock file; the text is one line."""


def cache_directory() -> Path:
    """Return the directory of this user for everything that James needs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jmapfs-james"


def directory() -> Path:
    """Return the directory of the verified jars; it exists only if they were resolved."""
    digest = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    return cache_directory() / f"jars-{digest[:16]}"


def missing() -> str | None:
    """Return the reason why James cannot run on this machine; None if it can."""
    for program in ("java", "keytool"):
        if not shutil.which(program):
            return f"{program} is missing (scripts/setup --test installs it)"
    if not directory().is_dir():
        return "the jars of James are missing (scripts/james resolve downloads them)"
    return None


def resolve() -> Path:
    """Return the directory of the verified jars; download them if that was not done before.

    Raises:
        JarsError: Maven failed or took too long, or a jar is not the one of the lock file.
    """
    jars = directory()
    if jars.is_dir():
        return jars
    with _exclusive(), _staging() as staging:
        # Another process may have resolved them meanwhile.
        if not jars.is_dir():
            _copy_with_maven(staging)
            verify(staging / "jars", LOCK.read_text())
            (staging / "jars").rename(jars)
    return jars


def verify(jars: Path, lock: str) -> None:
    """Compare the files of a directory with a lock file.

    Raises:
        JarsError: a file is missing, is not expected, or has another content.
    """
    expected = {name: digest for digest, name in (line.split() for line in lock.splitlines())}
    found = {path.name: _sha256(path) for path in jars.iterdir()}
    for problem, names in (
        ("is missing", expected.keys() - found.keys()),
        ("is not in the lock file", found.keys() - expected.keys()),
        ("has another SHA-256", {name for name in found if found[name] != expected.get(name)}),
    ):
        if names:
            first, *others = sorted(names)
            more = f" (and {len(others)} more)" if others else ""
            raise JarsError(f"the jar {first} {problem}{more}; expected those of {LOCK.name}")


def write_lock() -> None:
    """Resolve the dependencies of the POM and write the lock file from what was found."""
    with _exclusive(), _staging() as staging:
        _copy_with_maven(staging)
        jars = sorted((staging / "jars").iterdir())
        LOCK.write_text("".join(f"{_sha256(path)}  {path.name}\n" for path in jars))


def _copy_with_maven(staging: Path) -> None:
    """Copy the jars into `staging/jars`, with a local repository that is removed afterwards."""
    if not (maven := shutil.which("mvn")):
        raise JarsError("mvn is missing (scripts/setup --test installs it)")
    shutil.copy(POM, staging)
    command = [
        *(maven, "--batch-mode", "--quiet", "--strict-checksums"),
        f"-Dmaven.repo.local={staging / 'repository'}",
        *(_COPY, "-DincludeScope=runtime", f"-DoutputDirectory={staging / 'jars'}"),
    ]
    with (staging / "maven.log").open("w+b") as log:
        process = subprocess.Popen(
            command,
            cwd=staging,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            exit_code = process.wait(RESOLUTION_SECONDS)
        except subprocess.TimeoutExpired:
            raise JarsError(f"Maven did not end within {RESOLUTION_SECONDS:.0f} s") from None
        finally:
            # Maven's shell script has started a JVM, which must not outlive it.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    if exit_code:
        errors = [line for line in lines if "ERROR" in line] or lines
        raise JarsError(f"Maven failed: {errors[0] if errors else f'exit code {exit_code}'}")


@contextmanager
def _exclusive() -> Iterator[None]:
    """Wait until no other process resolves the jars."""
    cache_directory().mkdir(mode=0o700, parents=True, exist_ok=True)
    with (cache_directory() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _staging() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="resolve-", dir=cache_directory()) as new:
        yield Path(new)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
