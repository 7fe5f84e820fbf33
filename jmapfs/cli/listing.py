"""`jmapfs accounts`: which accounts a user can see."""

from __future__ import annotations

from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from jmapfs.account import mail_accounts
from jmapfs.cli.config import read_config
from jmapfs.cli.interruption import run_interruptibly
from jmapfs.cli.secrets import account_source


def accounts_of(argument: str) -> list[dict[str, Any]]:
    """Return the accounts with mail, the primary one first, as JSON can hold them.

    Raises:
        JmapfsError: the server cannot be asked.
    """
    source = account_source(argument, read_config())
    accounts = run_interruptibly(partial(mail_accounts, source))
    return [
        {
            "id": account.id,
            "name": account.name,
            "personal": account.is_personal,
            "read_only": account.is_read_only,
        }
        for account in accounts
    ]


def show(accounts: list[dict[str, Any]]) -> None:
    """Print accounts for people."""
    table = Table(box=None)
    for heading in ("NAME", "ID", "WHOSE"):
        table.add_column(heading)
    for account in accounts:
        table.add_row(account["name"], account["id"], "own" if account["personal"] else "shared")
    Console(highlight=False, soft_wrap=True, markup=False).print(table)
