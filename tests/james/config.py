"""The configuration of a James: its configuration files, keystore and ports.

A server keeps its mail in memory and writes only below its own directory. It listens on three ports
of loopback: IMAP, JMAP, and webadmin, which creates domains and users over HTTP. The session names
`http_port`, which differs from `jmap_port` if a relay stands between them.

The greeting of IMAP contains `servername`, which is random, so that a server of another process on
the same port is detected.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.mail_server.private_server import load_config, save_config

KEYTOOL_SECONDS = 60.0

_CONFIG_FILE = "server.json"
_SECRET = "keystore secret"

_FILES = {
    "jmap.properties": """\
enabled=true
jmap.port={jmap_port}
jmap.version.default={jmap_version}
url.prefix=http://127.0.0.1:{http_port}
websocket.url.prefix=ws://127.0.0.1:{http_port}
authentication.strategy.rfc8621=BasicAuthenticationStrategy
tls.keystoreURL=file://conf/keystore
tls.secret={secret}
""",
    "webadmin.properties": """\
enabled=true
host=127.0.0.1
port={webadmin_port}
https.enabled=false
""",
    "jmx.properties": "jmx.enabled=false\n",
    "imapserver.xml": """\
<imapservers>
  <imapserver enabled="true">
    <bind>127.0.0.1:{imap_port}</bind>
    <helloName autodetect="false">{servername}</helloName>
    <connectionLimit>0</connectionLimit>
    <connectionLimitPerIP>0</connectionLimitPerIP>
    <plainAuthDisallowed>false</plainAuthDisallowed>
    <auth>
      <plainAuthEnabled>true</plainAuthEnabled>
      <requireSSL>false</requireSSL>
    </auth>
  </imapserver>
</imapservers>
""",
    "smtpserver.xml": '<smtpservers><smtpserver enabled="false"/></smtpservers>\n',
    "lmtpserver.xml": '<lmtpservers><lmtpserver enabled="false"/></lmtpservers>\n',
    "pop3server.xml": '<pop3servers><pop3server enabled="false"/></pop3servers>\n',
    "managesieveserver.xml": (
        '<managesieveservers><managesieveserver enabled="false"/></managesieveservers>\n'
    ),
    "usersrepository.xml": """\
<usersrepository name="LocalUsers">
  <algorithm>SHA-512</algorithm>
  <enableVirtualHosting>true</enableVirtualHosting>
  <enableForwarding>false</enableForwarding>
</usersrepository>
""",
    "domainlist.xml": """\
<domainlist>
  <autodetect>false</autodetect>
  <autodetectIP>false</autodetectIP>
  <defaultDomain>localhost</defaultDomain>
</domainlist>
""",
    "dnsservice.xml": """\
<dnsservice>
  <servers><server>127.0.0.1</server></servers>
  <autodiscover>false</autodiscover>
  <authoritative>false</authoritative>
</dnsservice>
""",
    "logback.xml": """\
<configuration>
  <appender name="CONSOLE" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%d %-5level %logger - %msg%n%rEx</pattern></encoder>
  </appender>
  <root level="WARN"><appender-ref ref="CONSOLE"/></root>
</configuration>
""",
}


@dataclass(frozen=True)
class Config:
    """The directory, name and ports of a server, and its default version of JMAP.

    `jmap_version` is `rfc-8621`, or `draft` as in James's own default: clients then need
    `; jmapVersion=rfc-8621` in the Accept field of every request.
    """

    directory: Path
    servername: str
    imap_port: int
    jmap_port: int
    webadmin_port: int
    http_port: int
    jmap_version: str = "rfc-8621"


def write_config(config: Config) -> None:
    """Write the files that the server needs before its first start.

    Raises:
        RuntimeError: keytool failed.
    """
    conf = config.directory / "conf"
    conf.mkdir(mode=0o700, exist_ok=True)
    for name, text in _FILES.items():
        (conf / name).write_text(text.format(**vars(config), secret=_SECRET))
    if not (conf / "keystore").exists():
        _create_keystore(conf / "keystore")
    save_config(config, _CONFIG_FILE)


def load(directory: Path) -> Config | None:
    """Return the configuration of the server in `directory`, if there is one."""
    return load_config(Config, directory, _CONFIG_FILE)


def _create_keystore(path: Path) -> None:
    """Create a key and its certificate: James signs its access tokens with them."""
    done = subprocess.run(
        [
            *("keytool", "-genkeypair", "-alias", "james", "-keyalg", "RSA", "-keysize", "2048"),
            *("-dname", "CN=james.test", "-validity", "3650", "-storetype", "PKCS12"),
            *("-keystore", path, "-storepass", _SECRET, "-keypass", _SECRET),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=KEYTOOL_SECONDS,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"keytool failed: {(done.stdout + done.stderr).strip()}")
