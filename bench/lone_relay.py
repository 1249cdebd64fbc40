"""A relay without a mesh: `python -m bench.lone_relay MODEL TARGET` serves one model by one target.

That is a worker at `unix:/path`, or another relay's peer port at `host:port`. Prints its gRPC and its peer address, and relays
until SIGTERM.
"""

from __future__ import annotations

import signal
import sys

from modelmesh.dataplane.protocol import DataPlaneConfig, Name, NameKind, Replica, Route, Target
from modelmesh.dataplane.relay import Relay


def main() -> None:
    model, address = sys.argv[1:]
    relay = Relay(
        DataPlaneConfig(control_socket="/nonexistent/control.sock", grpc_port=0, rest_port=-1, peer_port=0)
    )
    addresses = relay.start()
    relay.set_targets([Target(1, address, peer=not address.startswith("unix:"))], [])
    relay.publish([Route(model, (Replica(1, 1),))])
    relay.publish_names([(Name(NameKind.MODEL_FIRST, model), model)])
    print(addresses.grpc, addresses.peer, flush=True)
    signal.sigwait({signal.SIGTERM})
    relay.stop()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    main()
