"""The configuration and the secrets: each error is one line, and no message shows a secret."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import trio

from jmapfs.account import AccountSource, mail_accounts
from jmapfs.cli.config import account_source, config_path, read_config
from jmapfs.errors import AuthenticationError, ConfigError
from jmapfs.jmap.credentials import BasicCredentials, BearerCredentials

SECRET = "s3cret-0f-alice"
HEAD = '[home]\nserver = "jmap.example.org"\n'


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("JMAPFS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "jmapfs").mkdir()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jmapfs" / "config.toml"


def secret_file(path: Path, content: bytes = SECRET.encode(), mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def source(name: str = "home", *, account: str | None = None) -> AccountSource:
    return account_source(name, read_config(), account=account)


def config_error(*words: str, name: str = "home") -> str:
    """Check that the error is one line with these words and without the secret; return it."""
    with pytest.raises(ConfigError) as caught:
        source(name)
    # A traceback would also show the causes of the error.
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in repr(error)
        error = error.__cause__
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text
    assert caught.value.exit_code == 3
    return text


# --- The file


def test_without_a_file_there_are_no_accounts(path: Path) -> None:
    assert config_path() == path
    assert read_config().accounts == {}
    assert str(path) in config_error("no such account", "none")


def test_jmapfs_config_names_the_file(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text("not read")
    other = tmp_path / "other.toml"
    monkeypatch.setenv("JMAPFS_CONFIG", str(other))
    assert config_path() == other
    config_error(str(other), "JMAPFS_CONFIG", "does not exist")
    other.write_text(HEAD)
    assert list(read_config().accounts) == ["home"]


def test_jmapfs_config_can_name_no_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("not read")
    monkeypatch.setenv("JMAPFS_CONFIG", os.devnull)
    assert read_config().accounts == {}


def test_empty_jmapfs_config_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JMAPFS_CONFIG", "")
    assert read_config().accounts == {}


@pytest.mark.parametrize(
    "content", [b"[home", b"= 1", b"[home]\nserver = 'a'\nserver = 'b'", b"\xff\xfe", b"a\x00b"]
)
def test_invalid_toml_is_an_error(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    config_error(str(path), "not TOML")


def test_an_unreadable_file_is_an_error(path: Path) -> None:
    path.mkdir()
    config_error(str(path), "directory")


def test_unknown_keys_are_named(path: Path) -> None:
    path.write_text(HEAD + 'usr = "alice"\npasword_file = "x"\n')
    config_error(str(path), "[home]", "pasword_file, usr", "password_file", "user")


@pytest.mark.parametrize("key", ["password", "token"])
def test_a_secret_in_the_file_is_refused_and_not_shown(path: Path, key: str) -> None:
    path.write_text(f'{HEAD}{key} = "{SECRET}"\n')
    config_error("[home]", key, "command")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[home]\nserver = 1\n", ("[home]", "str", "server")),
        (HEAD + "user = ['alice']\n", ("[home]", "str", "user")),
        (HEAD + "[home.user]\nname = 'alice'\n", ("[home]", "str", "user")),
        (HEAD + "account = true\n", ("[home]", "str", "account")),
        ("[home]\nuser = 'alice'\n", ("[home]", "server")),
        ("server = 'jmap.example.org'\n", ("'server'", "outside")),
        ("[[home]]\nserver = 'a'\n", ("'home'", "outside")),
    ],
)
def test_wrong_types_are_errors(path: Path, content: str, words: tuple[str, ...]) -> None:
    path.write_text(content)
    config_error(str(path), *words)


def test_a_mistake_in_one_account_is_an_error_for_all(path: Path) -> None:
    path.write_text(HEAD + "[work]\nserver = 'w'\nnope = 1\n")
    config_error("[work]", "nope")


# --- Secrets


@pytest.mark.parametrize("kind", ["password", "token"])
@pytest.mark.parametrize("way", ["command", "file", "env"])
def test_every_source_of_a_secret(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, way: str
) -> None:
    file = secret_file(tmp_path / "secret file", f"{SECRET}\r\nnotes: other\n".encode())
    monkeypatch.setenv("MY_SECRET", SECRET)
    value = {"command": f"cat '{file}'", "file": str(file), "env": "MY_SECRET"}[way]
    path.write_text(f'{HEAD}user = "alice"\n{kind}_{way} = "{value}"\n')
    found = source()
    assert found.login.current == (
        BasicCredentials("alice", SECRET) if kind == "password" else BearerCredentials(SECRET)
    )
    assert (found.label, found.location, found.account) == ("home", "jmap.example.org", None)
    assert SECRET not in repr(found)
    assert SECRET not in repr(read_config())


def test_a_tilde_in_a_file_name_is_expanded(path: Path, tmp_path: Path) -> None:
    secret_file(tmp_path / "token")
    path.write_text(HEAD + 'token_file = "~/token"\n')
    assert source().login.current == BearerCredentials(SECRET)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o622])
def test_a_secret_file_that_others_can_access_is_refused(
    path: Path, tmp_path: Path, mode: int
) -> None:
    file = secret_file(tmp_path / "token", mode=mode)
    path.write_text(f'{HEAD}token_file = "{file}"\n')
    config_error("[home]", "token_file", f"chmod 600 {file}")
    file.chmod(0o400)
    assert source().login.current == BearerCredentials(SECRET)
    assert stat.S_IMODE(file.stat().st_mode) == 0o400


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('token_file = "/nowhere/token"', ("token_file", "/nowhere/token", "No such file")),
        ('token_file = "/proc/self"', ("token_file",)),
        ('token_file = "~no-such-user/token"', ("token_file",)),
        ('token_file = "a\\u0000b"', ("token_file",)),
        ('token_file = ""', ("token_file",)),
        ('token_command = "false"', ("token_command", "exit code 1")),
        ("token_command = \"sh -c 'exit 42'\"", ("token_command", "exit code 42")),
        (f"token_command = \"sh -c 'echo {SECRET} >&2; echo {SECRET}; exit 3'\"", ("code 3",)),
        ("token_command = \"sh -c 'kill -9 $$'\"", ("token_command", "-9")),
        ('token_command = "/nowhere/program x"', ("token_command", "/nowhere/program")),
        ('token_command = "unclosed \'quote"', ("token_command", "quotation")),
        ('token_command = ""', ("token_command",)),
        ('token_command = "  "', ("token_command",)),
        ('token_command = "a\\u0000b"', ("token_command",)),
        ('token_command = "true"', ("token_command", "empty")),
        ("token_command = \"printf '\\\\nsecond line'\"", ("token_command", "empty")),
        ("token_command = \"printf '\\\\377'\"", ("token_command", "UTF-8")),
        ("token_command = \"printf 'a\\\\tb'\"", ("token_command", "control")),
        ('token_env = "NOT_SET"', ("token_env", "NOT_SET")),
        ('token_env = "EMPTY"', ("token_env", "EMPTY")),
        ('token_env = ""', ("token_env",)),
        ('password_env = "MY_SECRET"', ("[home]", "user")),
        ('user = ""\npassword_env = "MY_SECRET"', ("user",)),
        ('user = "a:b"\npassword_env = "MY_SECRET"', ("colon",)),
        ('user = "alice"\npassword_env = "MY_SECRET"\ntoken_env = "MY_SECRET"', ("one of them",)),
        ('token_file = "x"\ntoken_env = "MY_SECRET"', ("token_file and token_env", "one of them")),
        ('user = "alice"', ("secret", "password_command")),
        ("", ("secret", "token_command")),
    ],
)
def test_unavailable_secrets_are_errors(
    path: Path, monkeypatch: pytest.MonkeyPatch, line: str, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("MY_SECRET", SECRET)
    monkeypatch.setenv("EMPTY", "")
    path.write_text(f"{HEAD}{line}\n")
    config_error(*words)


def test_an_invalid_secret_is_not_shown(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for secret in (f"{SECRET} and more", f"{SECRET}é", f"\x1b{SECRET}"):
        file = secret_file(tmp_path / "token", secret.encode())
        path.write_text(f'{HEAD}token_file = "{file}"\n')
        config_error()
        monkeypatch.setenv("JMAPFS_TOKEN", secret)
        config_error(name="jmap.example.org")


def test_the_environment_is_used_if_the_file_names_no_secret(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text(HEAD + 'user = "alice"\n')
    monkeypatch.setenv("JMAPFS_PASSWORD", SECRET)
    assert source().login.current == BasicCredentials("alice", SECRET)
    monkeypatch.setenv("JMAPFS_TOKEN", SECRET)
    assert source().login.current == BearerCredentials(SECRET)


def test_the_file_overrides_the_environment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET", SECRET)
    monkeypatch.setenv("JMAPFS_TOKEN", "another")
    path.write_text(HEAD + 'user = "alice"\npassword_env = "MY_SECRET"\n')
    assert source().login.current == BasicCredentials("alice", SECRET)


@pytest.mark.parametrize("way", ["command", "file"])
def test_secret_is_read_again_from_the_same_place(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """A daemon has another working directory than the command that started it."""
    secret_file(tmp_path / "token")
    monkeypatch.chdir(tmp_path)
    value = {"command": "cat token", "file": "token"}[way]
    path.write_text(f'{HEAD}token_{way} = "{value}"\n')
    login = source().login
    (tmp_path / "token").write_text("another-secret")
    monkeypatch.chdir("/")

    async def renew() -> bool:
        refused = AuthenticationError("refused")
        return await login.renew(login.current, refused, trio.current_time() + 30)

    assert trio.run(renew)
    assert login.current == BearerCredentials("another-secret")


def test_secret_of_the_environment_is_not_read_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SECRET", SECRET)
    path.write_text(f'{HEAD}token_env = "MY_SECRET"\n')
    login = source().login
    monkeypatch.delenv("MY_SECRET")

    async def renew() -> bool:
        refused = AuthenticationError("refused")
        return await login.renew(login.current, refused, trio.current_time() + 30)

    assert not trio.run(renew)
    assert str(login.refusal) == "refused"


@pytest.mark.parametrize("user", ["", 'user = "alice"\n'])
def test_a_mail_address_is_the_user_name_if_none_is_given(
    path: Path, monkeypatch: pytest.MonkeyPatch, user: str
) -> None:
    name = "alice" if user else "alice@example.org"
    monkeypatch.setenv("MY_SECRET", SECRET)
    head = f'[home]\nserver = "alice@example.org"\n{user}'
    path.write_text(f'{head}password_env = "MY_SECRET"\n')
    assert source().login.current == BasicCredentials(name, SECRET)
    path.write_text(head)
    config_error("set JMAPFS_PASSWORD, or JMAPFS_TOKEN", name="bob@example.org")
    monkeypatch.setenv("JMAPFS_PASSWORD", SECRET)
    assert source().login.current == BasicCredentials(name, SECRET)
    assert source("bob@example.org").login.current == BasicCredentials("bob@example.org", SECRET)
    monkeypatch.setenv("JMAPFS_USERNAME", "carol")
    assert source("bob@example.org").login.current == BasicCredentials("carol", SECRET)


def test_a_session_url_is_no_user_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JMAPFS_PASSWORD", SECRET)
    config_error("JMAPFS_USERNAME", name="https://example.org/jmap/alice@example.org")


def test_connection_options(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JMAPFS_TOKEN", SECRET)
    monkeypatch.chdir(tmp_path)
    path.write_text(f'{HEAD}rewrite_origin = true\nca_file = "ca.pem"\n')
    found = source()
    assert (found.rewrite_origin, found.ca_file) == (True, tmp_path / "ca.pem")
    path.write_text(f'{HEAD}ca_file = "~/ca.pem"\n')
    found = source()
    assert (found.rewrite_origin, found.ca_file) == (False, tmp_path / "ca.pem")
    path.write_text(f'{HEAD}rewrite_origin = "yes"\n')
    config_error("[home]", "rewrite_origin", "bool")


def test_a_ca_file_is_used(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JMAPFS_TOKEN", SECRET)
    path.write_text(f'{HEAD}ca_file = "/absent/ca.pem"\n')

    async def connect(found: AccountSource) -> None:
        async with found.connect():
            pass

    for use in (connect, mail_accounts):
        with pytest.raises(ConfigError, match=r"ca_file: /absent/ca\.pem: No such file"):
            trio.run(use, source())


# --- Which account


@pytest.mark.parametrize(
    "location", ["https://example.org/jmap", "example.org", "alice@example.org", "localhost"]
)
def test_an_account_can_be_given_by_its_location(
    monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    config_error("JMAPFS_TOKEN", location, name=location)
    monkeypatch.setenv("JMAPFS_USERNAME", "alice")
    config_error("JMAPFS_PASSWORD", name=location)
    monkeypatch.setenv("JMAPFS_PASSWORD", SECRET)
    found = source(location, account="Shared")
    assert (found.label, found.location, found.account) == (location, location, "Shared")
    assert found.login.current == BasicCredentials("alice", SECRET)


def test_a_password_that_is_not_text_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "JMAPFS_USERNAME", "alice")
    monkeypatch.setitem(os.environ, "JMAPFS_PASSWORD", f"{SECRET}\udcff")
    config_error(name="example.org")


def test_an_account_name_precedes_a_host_of_the_same_name(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JMAPFS_TOKEN", SECRET)
    path.write_text('["example.org"]\nserver = "jmap.example.net"\n')
    assert source("example.org").location == "jmap.example.net"
    assert source("example.com").location == "example.com"


def test_an_unknown_account_lists_the_known_ones(path: Path) -> None:
    path.write_text(HEAD + "[work]\nserver = 'w'\n")
    config_error("hoem", "home, work", name="hoem")


def test_the_command_line_overrides_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JMAPFS_TOKEN", SECRET)
    path.write_text(HEAD + 'account = "Shared"\n')
    assert source().account == "Shared"
    assert source(account="Other").account == "Other"


def test_a_configuration_that_others_can_change_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names commands. Only a file that the user named is the choice of the user."""
    path.write_text(f'{HEAD}user = "a"\npassword_env = "MY_PASSWORD"\n')
    monkeypatch.setenv("MY_PASSWORD", SECRET)
    path.chmod(0o644)
    assert source().label == "home"
    path.chmod(0o666)
    config_error(f"{path}: other users can change it; run: chmod go-w {path}")
    monkeypatch.setenv("JMAPFS_CONFIG", "")
    config_error(f"{path}: other users can change it; run: chmod go-w {path}")
    monkeypatch.setenv("JMAPFS_CONFIG", str(path))
    assert source().label == "home"
