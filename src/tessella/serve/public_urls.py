"""URLs of images on the public internet: the only parser, and the rule for addresses.

A URL is parsed once, by `parse_url`. The checks, the connection and the request all use the object that it returns, so
that no two parsers can disagree about the host. Whether an address may be connected to is decided by `is_public`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import NoReturn, TypeAlias
from urllib.parse import quote, urljoin

import idna

from ..errors import ImageError

Address: TypeAlias = IPv4Address | IPv6Address

PORTS = {"https": 443, "http": 80}
MAX_LENGTH = 4_096  # characters of a URL, which is enough for signed URLs of object stores
MAX_HOST = 253  # characters of a name in the DNS

_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<target>[^#]*)(?:#.*)?", re.I)
_AUTHORITY = re.compile(r"(?P<host>\[[^\[\]]*\]|[^:\[\]]*)(?::(?P<port>[0-9]{1,5}))?")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # a last label that makes browsers read the host as an IPv4 address
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f-\xa0\\\ud800-\udfff\u2028\u2029]")
# of a path and a query: everything that a URL may contain as it is; the rest is percent-encoded
_TARGET_CHARACTERS = "/%:@!$&'()*+,;=~?[]"

# Every block of the registries of special-purpose addresses (IANA), whether or not the registry calls it globally
# reachable, and whatever the running version of Python knows about it: none of them holds images.
_BLOCKED_4 = [
    IPv4Network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16"),
        *("192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        "168.63.129.16/32",  # looks public, but reaches the platform's own service on every virtual machine of Azure
    )
]
# Only global unicast is allowed, which leaves out loopback, mapped, NAT64, unique local and link-local addresses.
_UNICAST_6 = IPv6Network("2000::/3")
_BLOCKED_6 = [
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID
        "2001:db8::/32",
        "2002::/16",  # 6to4, which carries any IPv4 address
        "2620:4f:8000::/48",
        "3fff::/20",
    )
]
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)  # upper half of an interface identifier whose lower half is an IPv4 address


def is_public(address: str) -> bool:
    """Return whether bytes may be exchanged with this address: it is unicast on the public internet.

    Ask it about resolved and connected addresses, never about the name of a host. False for text that is no address
    and for an address with a zone ("fe80::1%eth0").
    """
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, IPv6Address):
        if ip.scope_id is not None:
            return False
        if ip.ipv4_mapped is not None:  # how a socket for both versions reports an IPv4 peer
            return is_public(str(ip.ipv4_mapped))
        if ip not in _UNICAST_6 or int(ip) >> 32 & 0xFFFF_FFFF in _ISATAP:
            return False
        blocked = any(ip in network for network in _BLOCKED_6)
    else:
        blocked = any(ip in network for network in _BLOCKED_4)
    return not blocked and ip.is_global and not ip.is_multicast and not ip.is_reserved


@dataclass(frozen=True)
class PublicUrl:
    """A URL whose scheme, host and port may be fetched; the addresses of a named host are still to be checked.

    host: a name in ASCII without a trailing dot, or an address without brackets. address: the host if it is an address
    itself, which is public. target: path and query, percent-encoded, beginning with a slash.
    """

    scheme: str
    host: str
    port: int
    target: str
    address: Address | None = None

    @property
    def authority(self) -> str:
        """The value of the header `Host`; the port is always that of the scheme."""
        return f"[{self.host}]" if ":" in self.host else self.host

    def join(self, location: str) -> str:
        """Return the URL that a redirect to `location` refers to, unchecked: it has to be parsed like any other.

        Raises ImageError `url_refused` for a location that cannot be joined.
        """
        if re.match(r"[a-z][a-z0-9+.-]*:", location, re.I):
            return location
        if location.startswith("//"):
            return f"{self.scheme}:{location}"
        try:
            target = urljoin(self.target, location)
        except ValueError:  # what looks like another host, with brackets that contain no IPv6 address
            _refuse("the URL was redirected to a malformed location")
        # the authority is that of this object; only paths are joined
        return f"{self.scheme}://{self.authority}{target}"


def parse_url(url: str, *, allow_http: bool = False) -> PublicUrl:
    """Parse and check a URL; no name is resolved and nothing is opened.

    allow_http: accept the scheme http as well as https. Raises ImageError `url_refused` for another scheme (such as
    file, data or ftp), a user name, a port other than the scheme's own, a host that is not a name with a dot or a
    public address in its usual notation, and for backslashes, spaces and control characters anywhere.

    Other ports are refused because images are published on the usual ones, while a service that scans or attacks other
    ports would do so in the name of this machine.
    """
    if len(url) > MAX_LENGTH:
        _refuse(f"the URL has more than {MAX_LENGTH:,} characters")
    if _FORBIDDEN.search(url):
        _refuse("the URL contains a backslash, a space or a control character")
    parts = _URL.fullmatch(url)
    if parts is None:
        _refuse("this is not an absolute URL such as https://example.com/image.jpg")
    scheme = parts["scheme"].lower()
    if scheme not in (("https", "http") if allow_http else ("https",)):
        _refuse("the scheme of the URL is not https")
    authority = _AUTHORITY.fullmatch(parts["authority"])
    if authority is None or "@" in parts["authority"]:
        _refuse("the URL contains a user name, or its host is malformed")
    port = PORTS[scheme] if authority["port"] is None else int(authority["port"])
    if port != PORTS[scheme]:
        _refuse(f"the port of the URL is not {PORTS[scheme]}, the usual one of {scheme}")
    host, address = _parse_host(authority["host"])
    target = quote(parts["target"], safe=_TARGET_CHARACTERS)
    return PublicUrl(scheme, host, port, target if target.startswith("/") else f"/{target}", address)


def _parse_host(text: str) -> tuple[str, Address | None]:
    """Return the host in ASCII and, if it is one, as an address."""
    if text.startswith("["):
        try:
            address: Address = IPv6Address(text[1:-1])
        except ValueError:
            _refuse("the host of the URL is not an IPv6 address")
        return _check_address(address)
    host = _to_ascii(text) if not text.isascii() else text.lower()
    host = host.removesuffix(".")
    labels = host.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            address = IPv4Address(host)  # four decimal numbers without leading zeros, nothing else
        except ValueError:
            _refuse("the host of the URL is a number, but not an IPv4 address in its usual notation")
        if host != text:
            _refuse("the host of the URL is not an IPv4 address in its usual notation")
        return _check_address(address)
    if len(labels) < 2 or len(host) > MAX_HOST or not all(map(_LABEL.fullmatch, labels)):
        _refuse("the host of the URL is not a full name such as example.com")
    return host, None


def _check_address(address: Address) -> tuple[str, Address]:
    text = str(address)
    if not is_public(text):
        _refuse("the host of the URL is not a public address")
    return text, address


def _to_ascii(host: str) -> str:
    """Return an international name in its ASCII form, so that all checks see what the DNS is asked for."""
    try:
        return idna.encode(host, uts46=True, std3_rules=True).decode().lower()
    except (idna.IDNAError, UnicodeError):
        _refuse("the host of the URL is not a valid international name")


def _refuse(message: str) -> NoReturn:
    raise ImageError("url_refused", message, hint="give the https URL of an image on a public host")
