"""Sockets of HTTP ports, bound before anything else is started: a taken port is one sentence, and costs nothing."""

from __future__ import annotations

import errno
import socket

from modelmesh.errors import SettingsError


class Listener:
    """A bound socket; `address` is where, as "host:port"."""

    def __init__(self, host: str, port: int, setting: str = "--ops-port") -> None:
        """Raises SettingsError, naming the setting, when the port is taken or the host is not ours."""
        self.socket = _bind(host, port, setting)
        bound_host, bound_port = self.socket.getsockname()[:2]
        self.address = f"[{bound_host}]:{bound_port}" if ":" in bound_host else f"{bound_host}:{bound_port}"

    def close(self) -> None:
        """Idempotent."""
        self.socket.close()


def _bind(host: str, port: int, setting: str) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise SettingsError(
            f'--host: "{host}" is not an address of this machine: {error.strerror}.'
        ) from error
    family, kind, protocol, _, address = found[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        # Bound alone, the port could still be bound by another.
        bound.listen()
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(
                f"{setting}: port {port} is taken; stop what listens there, or choose another port (0: any free one)."
            ) from error
        if error.errno == errno.EADDRNOTAVAIL:
            raise SettingsError(f'--host: "{host}" is not an address of this machine.') from error
        raise SettingsError(f"{setting}: {host}:{port} cannot be bound: {error.strerror}.") from error
    return bound
