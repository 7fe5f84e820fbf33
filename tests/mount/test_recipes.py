"""The recipes of docs/backup-tools.md, run as they are printed, with other paths."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documents.markdown import blocks, text
from tests.machine import Machine
from tests.mails import fill_new_mailbox, text_mail
from tests.mounts import Home
from tests.server import ServerProcess, server_process
from tests.users import ALICE

pytestmark = pytest.mark.mount

RECIPES = text("docs/backup-tools.md")


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    """A few mails: not the number matters, but the commands."""
    with server_process("empty") as server:
        for name in ("Box", "Other"):
            fill_new_mailbox(server.control, map(text_mail, range(10)), name)
        yield server


def mails(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*.eml")
    }


@pytest.fixture
def contents(home: Home, server: ServerProcess) -> dict[str, bytes]:
    """All mail of the account, by path."""
    with home.mounted(server.url) as mount:
        return mount.contents()


def test_cron_with_flock(machine: Machine, contents: dict[str, bytes]) -> None:
    backup = machine.directory / "backup"
    (rsync,) = blocks(RECIPES, "rsync")
    (crontab,) = blocks(RECIPES, "cron")
    (machine.directory / "script").write_text("#!/bin/sh\n" + rsync.replace("/backup", str(backup)))
    (machine.directory / "crontab").write_text(crontab)
    machine.works("""
        DIR="$ALICE_HOME/mail"
        install -d -o "$USER_NAME" "$DIR" "$ALICE_HOME/backup" "$ALICE_HOME/.config/jmapfs"
        cp "$ALICES" "$ALICE_HOME/.config/jmapfs/config.toml"
        install -m 755 "$ALICE_HOME/script" "$ALICE_HOME/backup-mail"
        chown "$USER_NAME" "$ALICE_HOME"
        # What cron(8) does with a line of a crontab.
        job() {
            local path command
            path="$(sed -n 's/^PATH=//p' "$ALICE_HOME/crontab")"
            command="$(sed -n "s/^$1  *//p" "$ALICE_HOME/crontab")"
            test -n "$command"
            env -i HOME="$ALICE_HOME" LOGNAME="$USER_NAME" PATH="$path" SHELL=/bin/sh \
                $ALICE /bin/sh -c "$command"
        }
        # Each hour, with a mount that was made by the job, and by the start of the machine.
        job '17 \\* \\* \\* \\*'
        job '17 \\* \\* \\* \\*'
        jmapfs umount "$DIR"
        job @reboot
        job '17 \\* \\* \\* \\*'
        jmapfs umount "$DIR"
    """)
    assert mails(backup / "mirror") == contents


def test_root_backs_up_the_mount_of_a_user(machine: Machine, contents: dict[str, bytes]) -> None:
    archive = machine.directory / "alice-mail.tar"
    (recipe,) = blocks(RECIPES, "Backups by root")
    recipe = (
        recipe.replace("/home/alice/mail", str(machine.mountpoint))
        .replace("/backup/alice-mail.tar", str(archive))
        .replace("-u alice", f"-u {ALICE}")
    )
    machine.works(f"""
        mount -t jmapfs home "$DIR" -o "config=$ALICES,setuid={ALICE}"
        {recipe}
        jmapfs umount "$DIR"
    """)
    with tarfile.open(archive) as tar:
        assert {
            member.name.removeprefix("./") for member in tar if member.name.endswith(".eml")
        } == contents.keys()


# The recipes of these sections make a shell script each, with its configuration files.
CONFIGURATION = {"notmuch": ".notmuch-config", "recoll": ".recoll-mail/recoll.conf"}


def test_scanners(machine: Machine, contents: dict[str, bytes]) -> None:
    """They run twice. The second mount has another device number, and nothing has changed."""
    home = machine.directory
    for section in ("restic", "GNU tar", "notmuch", "find", "recoll"):
        *configuration, script = (
            block.replace("/backup", f"{home}/backup")
            .replace("/home/alice", str(home))
            .replace("REPOSITORY", f"{home}/backup/restic")
            for block in blocks(RECIPES, section)
        )
        (home / section).write_text(script)
        for block in configuration:
            path = home / CONFIGURATION[section]
            path.parent.mkdir(exist_ok=True)
            path.write_text(block)
    printed = machine.works("""
        unset ${!XDG_*}
        export HOME="$ALICE_HOME" RESTIC_PASSWORD=secret
        DIR="$HOME/mail"
        mkdir -p "$DIR" "$HOME/backup" "$HOME/.config/jmapfs" "$HOME/.local/share/notmuch"
        cp "$ROOTS" "$HOME/.config/jmapfs/config.toml"
        restic init -q -r "$HOME/backup/restic"
        run() {
            for recipe in restic 'GNU tar' notmuch find recoll; do
                echo "$1 $recipe"
                sh "$HOME/$recipe" 2>&1
                jmapfs status --json "$DIR" >"$HOME/$recipe $1.json"
            done
            stat --format 'device %d' "$DIR"
        }
        run first
        device="$(stat --format %d "$DIR")"
        jmapfs umount "$DIR"
        # The kernel assigns the lowest free number. Other mounts take it before the second mount.
        mkdir "$SCRATCH/other"
        for _ in {1..500}; do
            mount -t tmpfs none "$SCRATCH/other"
            if [[ "$(stat --format %d "$SCRATCH/other")" == "$device" ]]; then break; fi
        done
        run second
        notmuch count
        recollq -c "$HOME/.recoll-mail" -b 'subject:mail'
        jmapfs umount "$DIR"
    """)
    first, second = re.split("^second restic$", printed, flags=re.MULTILINE)
    [device], [other] = (re.findall("^device (.+)$", run, re.MULTILINE) for run in (first, second))
    assert device != other
    [found] = re.findall(r"^Files: +0 new, +0 changed, +(\d+) unmodified$", second, re.MULTILINE)
    assert int(found) == len(contents) + 1
    counts = []
    for path in sorted((home / "backup").glob("*.tar")):
        with tarfile.open(path) as archive:
            counts.append(sum(name.endswith(".eml") for name in archive.getnames()))
    assert counts == [len(contents), 0]
    assert "No new mail." in second
    directories = {str(home / "mail" / path.rpartition("/")[0]) for path in contents}
    found_by_find = [
        {line for line in run.splitlines() if line in directories} for run in (first, second)
    ]
    assert found_by_find == [directories, set()]
    assert all(f"file://{home}/mail/{path}\n" in second for path in contents)
    # The second mount has read at most `.jmapfs.json`.
    status = json.loads((home / "recoll second.json").read_bytes())
    assert status["fuse"].get("read", 0) < 5
    assert status["http"]["blobs"] == 0


# What the commands of the recipes make Docker do, with the files of this machine as the image.
DOCKER = """#!/bin/bash
set -e
pid_file() { echo "$SCRATCH/container-$1"; }
case $1 in
exec)
    exec nsenter --mount --pid --target "$(cat "$(pid_file "$2")")" --wd=/ -- "${@:3}"
    ;;
stop)
    # The first process of the namespace.
    kill -TERM "$(cat "$(pid_file "$2")")"
    while kill -0 "$(cat "$(pid_file "$2")")" 2>/dev/null; do sleep 0.1; done
    exit
    ;;
run) ;;
*) exit 99 ;;
esac
shift
name=
volumes=
while [[ $1 == -* ]]; do
    case $1 in
    -d | --rm) shift ;;
    --name) name="$2"; shift 2 ;;
    --device) test "$2" = /dev/fuse; shift 2 ;;
    --cap-add) test "$2" = SYS_ADMIN; shift 2 ;;
    -v) volumes+="$2 "; shift 2 ;;
    *) exit 98 ;;
    esac
done
test "$1" = IMAGE
shift
start='
set -e
mount -t proc proc /proc
for volume in $0; do
    IFS=: read -r source target options <<<"$volume"
    [[ $source == /* ]] || { source="$SCRATCH/$source"; mkdir -p "$source"; }
    if [[ -d $source ]]; then mkdir -p "$target"; else mkdir -p "${target%/*}"; touch "$target"; fi
    mount --bind "$source" "$target"
done
# The environment of a container is its own.
exec env -i HOME="$CONTAINER_HOME" PATH="$PATH" "$@"
'
command=(unshare --mount --pid --fork --kill-child bash -c "$start" "$volumes" "$@")
if [[ -z $name ]]; then exec "${command[@]}"; fi
"${command[@]}" &
child=
until [[ $child ]]; do sleep 0.1; read -r child _ <<<"$(cat "/proc/$!/task/$!/children")"; done
echo "$child" >"$(pid_file "$name")"
disown
"""


def test_containers(machine: Machine, contents: dict[str, bytes]) -> None:
    container, backup = machine.directory / "container", machine.directory / "backup"
    backup.mkdir()
    mounting, reading = (
        block.replace(" /mail", f" {container}/mail")
        .replace(":/mail:", f":{container}/mail:")
        .replace("/root/", f"{container}/root/")
        .replace("/etc/jmapfs.toml", str(machine.directory / "roots.toml"))
        .replace("/backup", str(backup))
        .replace("~/mail", str(machine.mountpoint))
        for block in blocks(RECIPES, "Containers")
    )
    (container / "mail").mkdir(parents=True)
    (machine.directory / "docker").write_text(DOCKER)
    preparation = f"""
        install -m 755 "$ALICE_HOME/docker" /usr/local/bin/docker
        export CONTAINER_HOME={container}/root
    """
    # `docker run -d` does not wait until the account is mounted.
    status = f"docker exec mail jmapfs status {container}/mail"
    wait = f"until {status} | grep -q emails; do sleep 0.2; done"
    machine.works(preparation + mounting.replace("docker exec", f"{wait}\ndocker exec", 1))
    assert mails(backup / "mirror") == contents
    machine.works(f"""
        {preparation}
        rm -r {backup}/mirror
        mount -t jmapfs home "$DIR" -o "config=$ROOTS"
        {reading}
        jmapfs umount "$DIR"
    """)
    assert mails(backup / "mirror") == contents
