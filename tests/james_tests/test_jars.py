"""The jars of James are those of the lock file."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.james import jars


def lock_line(name: str, content: bytes) -> str:
    return f"{hashlib.sha256(content).hexdigest()}  {name}\n"


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A directory with two jars."""
    (tmp_path / "a.jar").write_bytes(b"a")
    (tmp_path / "b.jar").write_bytes(b"b")
    return tmp_path


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory without jars."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def pretend_maven(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a shell script on PATH as `mvn`."""
    programs = directory / "programs"
    programs.mkdir()
    maven = programs / "mvn"
    maven.write_text(f"#!/bin/sh\n{script}\n")
    maven.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")


def test_the_right_jars_are_accepted(two: Path) -> None:
    jars.verify(two, lock_line("a.jar", b"a") + lock_line("b.jar", b"b"))


@pytest.mark.parametrize(
    ("lock", "problem"),
    [
        (lock_line("a.jar", b"a"), r"b\.jar is not in the lock file"),
        (
            lock_line("a.jar", b"a") + lock_line("b.jar", b"b") + lock_line("c.jar", b"c"),
            r"c\.jar is missing",
        ),
        (lock_line("a.jar", b"x") + lock_line("b.jar", b"b"), r"a\.jar has another SHA-256"),
    ],
)
def test_other_jars_are_refused(two: Path, lock: str, problem: str) -> None:
    with pytest.raises(jars.JarsError, match=problem):
        jars.verify(two, lock)


def test_an_error_of_maven_is_one_line_and_leaves_nothing(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_maven(empty_cache, monkeypatch, "echo '[ERROR] no such version'; echo more; exit 1")
    done = subprocess.run(
        [sys.executable, "-m", "tests.james", "resolve"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "scripts/james: Maven failed: [ERROR] no such version\n"
    assert [path.name for path in jars.cache_directory().iterdir()] == ["lock"]


def test_maven_has_a_deadline(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_maven(empty_cache, monkeypatch, "sleep 60")
    monkeypatch.setattr(jars, "RESOLUTION_SECONDS", 0.2)
    with pytest.raises(jars.JarsError, match="did not end within"):
        jars.resolve()


def test_unexpected_jars_are_not_kept(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Maven is told the directory with its last argument.
    script = 'for last; do :; done; mkdir "${last#*=}"; echo x >"${last#*=}/x.jar"'
    pretend_maven(empty_cache, monkeypatch, script)
    with pytest.raises(jars.JarsError, match=r"is missing \(and 313 more\)"):
        jars.resolve()
    assert jars.missing() is not None


def test_resolved_jars_are_not_resolved_again(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_maven(empty_cache, monkeypatch, "exit 1")
    jars.directory().mkdir(parents=True)
    assert jars.resolve() == jars.directory()


@pytest.mark.james
def test_the_resolved_jars_are_those_of_the_lock_file() -> None:
    assert shutil.which("java")
    jars.verify(jars.directory(), jars.LOCK.read_text())
