"""Which names a request may call this server by.

A page from elsewhere can point a name of its own at this machine and then read what a server without keys answers (DNS
rebinding); its browser sends that name as Host.
"""

import ipaddress
from typing import Final

from app.settings import Settings

ANY: Final = "*"
# The second is how Docker Desktop's containers call the loopback of their host.
_OWN_NAMES: Final = frozenset({"localhost", "host.docker.internal"})


class AllowedHosts:
    """The configured names beside those of the machine itself; any name where nobody said and a key or proxy guards."""

    def __init__(self, settings: Settings) -> None:
        named = frozenset(host.lower() for host in settings.allowed_hosts)
        is_private = not settings.has_keys and is_loopback(settings.host)
        self._is_any = ANY in named or (not named and not is_private)
        self._names = named | _OWN_NAMES | {settings.host.lower()}

    def __contains__(self, host: str) -> bool:
        """Whether this is one of them; host: a Host header, with or without its port."""
        name = without_port(host).lower()
        return self._is_any or name in self._names or is_loopback(name)


def without_port(host: str) -> str:
    """The name or address of a Host header, an IPv6 address without its brackets."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def is_loopback(host: str) -> bool:
    """Whether the address or name can only mean this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
