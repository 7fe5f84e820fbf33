"""What verifying a snapshot comes to: what is wrong with it, file by file, and in one word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

from jmapfs.errors import AlteredFilesError, ExtraFilesError, JmapfsError, MissingFilesError

Kind = Literal["altered", "missing", "extra"]
Outcome = Literal["good", "altered", "missing", "extra"]

KINDS: Final[tuple[Kind, ...]] = ("altered", "missing", "extra")
"""The worst one first: it is the outcome where there are several."""

_ERRORS: Final[Mapping[Kind, type[JmapfsError]]] = {
    "altered": AlteredFilesError,
    "missing": MissingFilesError,
    "extra": ExtraFilesError,
}


class Finding(NamedTuple):
    """Something that is wrong: `path` is relative to the snapshot, and may be any name at all."""

    path: str
    kind: Kind
    detail: str


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """A snapshot that was verified.

    `mails` and `files` are those that it should have, `files` counts names. `bytes_read` is the
    content of mail that was read for it: what was read for a snapshot before is not read again.
    `remarks` are what is odd and does no harm.
    """

    path: Path
    quick: bool
    mails: int
    files: int
    bytes_read: int
    findings: Sequence[Finding]
    remarks: Sequence[str]

    @property
    def outcome(self) -> Outcome:
        """All there is to say, in one word."""
        found = self.counts()
        return next((kind for kind in KINDS if found[kind]), "good")

    def counts(self) -> Counter[Kind]:
        """Return how much of each kind was found."""
        return Counter(finding.kind for finding in self.findings)


def counted(results: Sequence[VerifyResult]) -> str:
    """Return how much of each kind was found, as text."""
    found = _total(results)
    return ", ".join(f"{found[kind]:,} {kind}" for kind in KINDS)


def error_of(results: Sequence[VerifyResult]) -> JmapfsError | None:
    """Return the error that tells of everything that is wrong, by its worst; None if nothing is."""
    wrong = [result for result in results if result.findings]
    found = _total(wrong)
    worst = next((kind for kind in KINDS if found[kind]), None)
    if worst is None:
        return None
    name = wrong[0].path.name if len(wrong) == 1 else f"{len(wrong):,} snapshots"
    files = sum(result.files for result in wrong)
    return _ERRORS[worst](f"{name}: {counted(wrong)} of {files:,} files")


def _total(results: Sequence[VerifyResult]) -> Counter[Kind]:
    return sum((result.counts() for result in results), Counter[Kind]())
