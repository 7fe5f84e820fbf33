"""`jmapfs mount`: from the command line to a running daemon."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from jmapfs.cli.config import read_config
from jmapfs.cli.display import MountDisplay
from jmapfs.cli.secrets import account_source
from jmapfs.control import resolve
from jmapfs.errors import JmapfsError, UsageError
from jmapfs.mount import (
    MountRequest,
    PipeReport,
    Stopped,
    check,
    log_path,
    log_to_file,
    log_to_stderr,
    parse_options,
    run_daemon,
    run_in_background,
)

_log = logging.getLogger(__name__)


def mount_request(
    account: str,
    mountpoint: Path,
    *,
    options: Iterable[str],
    selection: str | None,
    cache_dir: Path,
    cache_size: int,
    poll_interval: float,
    all_accounts: bool,
) -> MountRequest:
    """Put together what is to be mounted; secrets are fetched here, while there is a terminal.

    Raises:
        UsageError: an option is not right.
        ConfigError: the account, or its secret, is not to be had.
    """
    mount_options = parse_options(options)
    if all_accounts and selection is not None:
        raise UsageError("--account NAME and --all-accounts exclude each other")
    return MountRequest(
        source=account_source(account, read_config(), account=selection),
        mountpoint=resolve(mountpoint),
        cache_root=cache_dir.absolute(),
        cache_limit=cache_size,
        options=mount_options,
        poll_interval=poll_interval,
        all_accounts=all_accounts,
    )


def mount(request: MountRequest, *, foreground: bool, verbose: bool) -> None:
    """Mount, and return when the tree is there; in the foreground, when it is gone again.

    Raises:
        JmapfsError: it cannot be mounted.
        KeyboardInterrupt: Ctrl-C before it was mounted.
    """
    with MountDisplay() as display:
        if foreground:
            log_to_stderr(verbose=verbose)
            try:
                run_daemon(request, display)
            except Stopped:
                raise KeyboardInterrupt from None
            return
        check(request.mountpoint, request.cache_root)

        def daemon(report: PipeReport) -> int:
            try:
                log_to_file(log_path(request.mountpoint), verbose=verbose)
                run_daemon(request, report)
            except (JmapfsError, Stopped) as error:
                _log.error("not mounted, or not any more: %s", error)
                report.failed(error)
                return getattr(error, "exit_code", 1)
            except BaseException as error:  # noqa: BLE001 - logged, and the process ends here
                _log.critical("the daemon ends because of a bug", exc_info=True)
                report.failed(error)
                return 1
            return 0

        run_in_background(daemon, display)
