"""The HTTP ports of an instance: the ops port, and those that the predecessor's manifests expect beside it."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from modelmesh.instance.background import beside
from modelmesh.ops.listener import Listener
from modelmesh.settings.tree import Settings

if TYPE_CHECKING:
    from modelmesh.instance.watched_files import WatchedFiles
    from modelmesh.journal import Journal
    from modelmesh.ops.parts import Parts


class Ports:
    """Bound when made, in the order ops, probes, prestop, metrics; those that the ops port answers for are left out."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError for a port that cannot be had; then none is."""
        network = settings.network
        self._edges, self._https = settings.edges, settings.metrics.export.https
        self._bound: dict[str, Listener] = {"ops": Listener(network.host, network.ops_port)}
        for name, port, setting in (
            ("probes", network.probe_port, "--probe-port"),
            ("prestop", network.prestop_port, "--prestop-port"),
            ("metrics", settings.metrics.export.port, "--metrics"),
        ):
            if port is None or (port == network.ops_port != 0 and self._on_ops(name)):
                continue
            try:
                self._bound[name] = Listener(network.host, port, setting)
            except BaseException:
                self.close()
                raise

    def _on_ops(self, name: str) -> bool:
        """The ops port answers the same under its own number."""
        return name == "probes" or (name == "metrics" and not self._https)

    @property
    def ops(self) -> str:
        """The URL of the ops port."""
        return f"http://{self._bound['ops'].address}"

    @property
    def others(self) -> dict[str, str]:
        """The URLs of the rest, by name."""
        return {name: self._url(name) for name in self._bound if name != "ops"}

    @asynccontextmanager
    async def serving(self, parts: Parts, journal: Journal) -> AsyncIterator[None]:
        """All of them, while entered. Raises SettingsError when the metrics port cannot have TLS."""
        from modelmesh.ops import app
        from modelmesh.ops.server import HTTPServer

        made = {
            "ops": app.ops_app,
            "probes": app.probe_app,
            "prestop": app.prestop_app,
            "metrics": app.metrics_app,
        }
        async with AsyncExitStack() as stack:
            for name, listener in self._bound.items():
                tls = None
                if name == "metrics" and self._https:
                    tls, watched = self._tls(journal)
                    if watched is not None:
                        await stack.enter_async_context(
                            beside(watched.run(), "certificate of the metrics port")
                        )
                server = HTTPServer(listener)
                stack.push_async_callback(server.stop)
                await server.start(made[name](parts), tls)
            yield

    def close(self) -> None:
        """Idempotent."""
        for listener in self._bound.values():
            listener.close()

    def _url(self, name: str) -> str:
        scheme = "https" if name == "metrics" and self._https else "http"
        return f"{scheme}://{self._bound[name].address}"

    def _tls(self, journal: Journal) -> tuple[ssl.SSLContext, WatchedFiles | None]:
        from modelmesh.ops.certificate import given, self_signed

        certificate, key = self._edges.tls_cert, self._edges.tls_key
        if certificate is None or key is None:
            return self_signed(), None
        from modelmesh.instance.watched_files import WatchedFiles

        context, use = given(certificate, key, self._edges.tls_key_passphrase or "")
        return context, WatchedFiles([certificate, key], use, journal, "The certificate of the metrics port")
