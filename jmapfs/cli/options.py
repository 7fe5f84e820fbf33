"""What several commands are told: which account, where it is kept, and where its snapshots are."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from jmapfs.account import default_cache_root

destination_argument: Final = click.argument(
    "destination", metavar="DEST", type=click.Path(path_type=Path, resolve_path=True)
)

account_option: Final = click.option(
    "--account", "selection", metavar="NAME", help="Another of the accounts the user can see."
)

cache_directory_option: Final = click.option(
    "--cache-dir",
    type=click.Path(path_type=Path),
    default=default_cache_root,
    help="Where index and mail are kept.  [default: $XDG_CACHE_HOME/jmapfs]",
)
