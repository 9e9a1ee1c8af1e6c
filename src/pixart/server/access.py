"""Where a server of ours listens, by which names it is reached, and by whose pages: of the API and the studio."""

import re
import socket
import sys
from base64 import b64decode
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from tyro.conf import UseAppendAction, arg

from pixart.config import shown
from pixart.errors import PixArtError, UsageError, reason_of

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Names:
    """By which names a server is reached.

    Attributes:
        hosts: names and addresses that a Host header may have, at any port (a tunnel has another).
        own_address: whether the address that a connection came in at is one of them, too, as behind `0.0.0.0`.
        proxied: those of them that a proxy may put pages of other ports and schemes behind.
    """

    hosts: frozenset[str]
    own_address: bool = False
    proxied: frozenset[str] = frozenset()

    def knows_host(self, scope: dict) -> bool:
        """Whether the one Host header of an HTTP scope is such a name."""
        name = _name_of(f"//{_host(scope)}")
        own = {scope["server"][0].lower()} if self.own_address and scope.get("server") else set()
        return bool(name) and name in self.hosts | own

    def refuses_page(self, scope: dict) -> bool:
        """Whether a browser says that a page of another site sends this, not a person who follows a link."""
        if any(not self._is_origin(origin.lower(), _host(scope)) for origin in _values(scope, b"origin")):
            return True
        opened = _values(scope, b"sec-fetch-mode") == ["navigate"] and scope["method"] in ("GET", "HEAD")
        return not opened and any(site in ("cross-site", "same-site") for site in _values(scope, b"sec-fetch-site"))

    def _is_origin(self, origin: str, host: str) -> bool:
        """The same host and port as the request's; behind a named proxy, the name."""
        try:
            parts = urlsplit(origin)
            port = parts.port
        except ValueError:
            return False
        if parts.scheme not in ("http", "https") or origin != f"{parts.scheme}://{parts.netloc}":
            return False
        if parts.hostname in self.proxied:
            return True
        default = {"http": ":80", "https": ":443"}[parts.scheme]
        named = host if re.search(r":\d+$", host) else host + default
        return named == (parts.netloc if port is not None else parts.netloc + default)


@dataclass(frozen=True)
class Listening:
    """Where a server listens."""

    port: Annotated[int, arg(metavar="N")]
    """Port to listen on; 0 takes a free one."""
    host: Annotated[str, arg(metavar="ADDRESS")] = "127.0.0.1"
    """Where to listen. Others can reach any address but the default, so that needs a key or password."""
    allowed_host: Annotated[
        tuple[str, ...], UseAppendAction, arg(metavar="NAME", help_behavior_hint="(repeatable)")
    ] = ()
    """A further name by which clients may reach this server, as behind a proxy."""
    root_path: Annotated[str, shown("PATH", "none")] = ""
    """The path that a proxy takes away before it hands a request on, such as /proxy/7860."""

    def __post_init__(self):
        if not 0 <= self.port <= 65535:
            raise UsageError(f"The port must be from 0 to 65535, not {self.port}.")

    def names(self) -> Names:
        """By which the server is reached."""
        names = {name.lower().strip("[]") for name in (*LOOPBACK, *self.allowed_host)}
        if self.host in LOOPBACK:
            return Names(frozenset(names))
        names |= {self.host.lower().strip("[]"), socket.gethostname().lower()}
        return Names(frozenset(names - {"0.0.0.0", "::"}), own_address=True)

    def listen(self) -> socket.socket:
        """A listening socket: whether the port is free is known before anything is loaded. Raises PixArtError."""
        try:
            family = socket.getaddrinfo(self.host.strip("[]"), self.port, type=socket.SOCK_STREAM)[0][0]
            listening = socket.socket(family, socket.SOCK_STREAM)
            try:
                if sys.platform != "win32":
                    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listening.bind((self.host.strip("[]"), self.port))
                listening.listen(2048)
            except BaseException:
                listening.close()
                raise
        except (OSError, OverflowError, UnicodeError) as error:
            where = f"{self.host}:{self.port} ({reason_of(error)})"
            raise PixArtError(f"Nothing can be served at {where}; choose another --port.") from None
        return listening

    def address(self, listening: socket.socket) -> str:
        """For a person to open."""
        host = self.host
        shown_as = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        return f"http://{shown_as}:{listening.getsockname()[1]}"


def basic_password(header: str) -> str | None:
    """The password in an Authorization header of the Basic scheme, or None."""
    scheme, _, given = header.partition(" ")
    try:
        return b64decode(given, validate=True).decode().partition(":")[2] if scheme.lower() == "basic" else None
    except ValueError:
        return None


def _host(scope: dict) -> str:
    """The Host header, if there is one only."""
    given = _values(scope, b"host")
    return given[0].lower() if len(given) == 1 else ""


def _values(scope: dict, header: bytes) -> list[str]:
    return [value.decode("latin-1") for name, value in scope["headers"] if name.lower() == header]


def _name_of(url: str) -> str | None:
    """The host of an address without its port; None for what is none."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  raises for what is no port
    except ValueError:
        return None
    return parts.hostname if parts.username is None and not (parts.path or parts.query or parts.fragment) else None
