"""Options that several commands have: which account, and where it is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from jmapfs.account import default_cache_root

account_option: Final = click.option(
    "--account", "selection", metavar="NAME", help="Another of the accounts the user can see."
)

cache_directory_option: Final = click.option(
    "--cache-dir",
    type=click.Path(path_type=Path),
    default=default_cache_root,
    help="Where index and mail are kept.  [default: $XDG_CACHE_HOME/jmapfs]",
)
