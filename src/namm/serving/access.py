"""Who may ask: under which names a server is called, from which web pages, and with which keys."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address

from starlette.datastructures import Headers

from namm.errors import ConfigurationError
from namm.serving.refusals import Refusal

_ANYONE = "anyone"
_ANY = "*"
OPEN = frozenset({"/", "/health", "/metrics", "/openapi.json"})  # paths without a key
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:/?#@\[\]]+)(:\d+)?")
_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[^\sA-Z:/?#@\[\]]+)(:\d+)?")
_KEY = re.compile(r"[!-~]+")


@dataclass(frozen=True)
class Access:
    """
    Attributes:
        keys: that clients send; without any, none is asked for and everyone is one and the same owner.
        origins: of web pages from elsewhere that may ask, such as "https://chat.example"; "*" for all.
        hosts: names and addresses by which the server is called, beside those of the loopback; "*" for any. An
            unspecified address, such as 0.0.0.0, stands for all addresses.

    Raises:
        ConfigurationError: something that no client can send.
    """

    keys: tuple[str, ...] = field(default=(), repr=False)
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key in self.keys:
            if not _KEY.fullmatch(key):
                got = "other characters" if key.strip() else "an empty one"
                raise ConfigurationError(
                    "keys of printable ASCII without spaces", got, "Give another, or leave it out."
                )
        for origin in self.origins:
            if not _ORIGIN.fullmatch(origin):
                raise ConfigurationError("an origin such as https://chat.example", repr(origin), "Leave out its path.")
        for host in self.hosts:
            found = _HOST.fullmatch(host)
            if (found is None or found[2]) and _address(host) is None:
                way_out = "Leave out the scheme, the port (any is meant) and the path."
                raise ConfigurationError("a host such as chat.example", repr(host), way_out)

    def check_origin(self, headers: Headers) -> None:
        """Whether the server is called by one of its names, and by a web page only if it may ask.

        A page that has its own name resolve to this machine (DNS rebinding) is found by the name, since the browser
        sends it; a page of another origin is found by its origin. Clients that are no browser send none.

        Raises:
            Refusal: 400 without a host, 421 with another's, 403 of another origin.
        """
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not (found := _HOST.fullmatch(hosts[0])):
            expected = "expected one header Host with a name or an address; got none such. Send one."
            raise Refusal(400, expected, "invalid_host")
        if not self._is_ours(found[1]):
            raise Refusal(
                421,
                f"expected a name of this server, such as localhost or its address; got {found[1][:100]!r}. Its "
                "operator allows another with --allow-host.",
                "unknown_host",
            )
        for origin in headers.getlist("origin"):
            ours = origin.partition("://")[2].lower() == hosts[0].lower()  # a proxy may have taken the TLS off
            if not ours and not {_ANY, origin} & {*self.origins}:
                raise Refusal(
                    403,
                    f"expected a page of this server, or of an origin it allows; got {origin[:100]!r}. Its operator "
                    "allows it with --allow-origin.",
                    "unknown_origin",
                )

    def _is_ours(self, host: str) -> bool:
        name, address = _name(host), _address(host)
        if name == "localhost" or {_ANY, name} & {_name(known) for known in self.hosts}:
            return True
        if address is None:
            return False
        known = [_address(one) for one in self.hosts]
        return address.is_loopback or address in known or any(one and one.is_unspecified for one in known)


def _name(host: str) -> str:
    return host.lower().removesuffix(".")


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host.strip("[]"))
    except ValueError:
        return None


class Keys:
    """API keys, of which only digests are kept."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._owners = tuple(_digest(key) for key in keys)

    def owner(self, authorization: str) -> str:
        """Who sends this header.

        Raises:
            Refusal: nobody that is known.
        """
        if not self._owners:
            return _ANYONE
        scheme, _, key = authorization.partition(" ")
        sent = _digest(key.strip())
        known = [owner for owner in self._owners if hmac.compare_digest(owner, sent)]  # all, in constant time
        if scheme.lower() != "bearer" or not known:
            raise Refusal(
                401,
                "expected a known API key; got none or another. Send the header 'Authorization: Bearer KEY'.",
                "invalid_api_key",
            )
        return known[0]


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
