"""The worker: its main thread runs batches, one thread loads, one answers everything else the supervisor asks.

The main thread hands each batch to its model and the result back. Loads and imports wait for each other, so that
each can be measured; unloads and measurements never wait for a load.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import queue
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Final

from modelmesh.dataplane.model_server import Batch, ModelServer
from modelmesh.errors import Code, LoadFailed, ModelMeshError, code_of
from modelmesh.worker import memory
from modelmesh.worker.busy import Busy
from modelmesh.worker.control import (
    Changed,
    Done,
    Import,
    Load,
    LoadDone,
    Measure,
    Measured,
    Message,
    Refused,
    Serve,
    Stop,
    Unload,
    encode,
    receive,
)
from modelmesh.worker.residents import Residents

log = logging.getLogger(__name__)

BATCH_WAIT_S: Final = 0.5
STOPPED_WAIT_S: Final = 0.01
SWITCH_INTERVAL_S: Final = 0.001
"""A batch waits at most this long for a loading thread to let go of the interpreter."""
DRAIN_POLL_S: Final = 0.005
RAN_S_MIN: Final = 0.01
"""Models that ran for less between two measurements are not named."""


class Worker:
    """The model server process behind one control channel."""

    def __init__(self, channel: socket.socket, server: ModelServer) -> None:
        self._channel = channel
        self._server = server
        self._sending = threading.Lock()
        self._residents = Residents()
        self._handles: dict[str, int] = {}
        self._loads: queue.SimpleQueue[tuple[int, Load | Import]] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._stopped = threading.Event()
        self._busy = Busy()

    def run(self, number: int) -> None:
        """Say that all is ready, as the answer to command `number`, and serve until told to stop. Ends the process when the
        supervisor is gone."""
        for target in (self._listen, self._load_in_turn):
            threading.Thread(target=target, name=target.__name__, daemon=True).start()
        self._send(number, Done())
        self._run_batches()

    def _run_batches(self) -> None:
        residents, server = self._residents, self._server
        while True:
            batch = server.next_batch(BATCH_WAIT_S)
            if batch is None:
                # From a closed queue none comes at once, again and again, while what is in flight is still answered.
                if self._stopping.is_set() and self._stopped.wait(STOPPED_WAIT_S):
                    return
                continue
            with residents.turn:
                pass
            with residents.quiet:
                self._busy.begin(batch.handle)
                run_batch(batch, residents)
                self._busy.end()
                residents.batches += 1
            del batch

    def _listen(self) -> None:
        """Read commands until the channel closes: then nobody would ever stop this process."""
        try:
            while (received := receive(self._channel)) is not None:
                number, command = received
                if isinstance(command, Load | Import):
                    self._loads.put((number, command))
                elif isinstance(command, Unload):
                    self._unload(number, command)
                else:
                    self._send(number, self._answer(command))
                    if isinstance(command, Stop):
                        return
        except Exception:
            log.exception("The worker's control channel broke.")
        os._exit(1)

    def _answer(self, command: Message) -> Message:
        match command:
            case Measure():
                return self._measure(command)
            case Stop():
                self._stopping.set()
                self._server.stop(command.grace_s)
                self._stopped.set()
                return Done()
            case _:
                return Refused(
                    Code.UNIMPLEMENTED, f"The worker does not know the command {type(command).__name__}."
                )

    def _unload(self, number: int, command: Unload) -> None:
        handle = self._handles.pop(command.model, None)
        if handle is not None and self._server.remove_model(command.model):
            arguments = (number, command, handle)
            threading.Thread(
                target=self._free_when_drained, args=arguments, name="drain", daemon=True
            ).start()
            return
        self._free(number, handle)

    def _free_when_drained(self, number: int, command: Unload, handle: int) -> None:
        deadline_s = time.monotonic() + command.grace_s
        while self._server.remove_model(command.model) and time.monotonic() < deadline_s:
            time.sleep(DRAIN_POLL_S)
        self._free(number, handle)

    def _free(self, number: int, handle: int | None) -> None:
        if handle is not None:
            self._residents.free(handle)
        self._send(number, Done())

    def _measure(self, command: Measure) -> Measured:
        self._residents.tidy(command.slack_max_bytes)
        # A load may add to it meanwhile; copying is one step under the interpreter lock, a comprehension is not.
        names = {handle: model for model, handle in self._handles.copy().items()}
        settled = self._residents.settle()
        busy_s, ran_s = self._busy.take()
        return Measured(
            in_use_bytes=memory.heap_bytes(),
            slack_bytes=self._residents.slack_bytes(),
            anon_bytes=self._residents.anon_bytes(),
            busy_s=busy_s,
            batches=self._residents.batches,
            settled={names[handle]: size for handle, size in settled.items() if handle in names},
            ran_s={
                names[handle]: seconds
                for handle, seconds in ran_s.items()
                if handle in names and seconds >= RAN_S_MIN
            },
        )

    def _load_in_turn(self) -> None:
        while True:
            number, command = self._loads.get()
            answer: Message
            try:
                answer = self._load(command) if isinstance(command, Load) else self._import(command)
            except LoadFailed as failure:
                answer = Refused(failure.code, failure.message)
            except MemoryError:
                answer = Refused(Code.RESOURCE_EXHAUSTED, "There was not enough memory to load the model.")
            except BaseException as error:
                log.exception("A load failed in an unforeseen way: %s", command)
                answer = Refused(Code.INTERNAL, f"Loading failed: {type(error).__name__}: {error}")
            self._send(number, answer)

    def _import(self, command: Import) -> Done:
        self._residents.import_format(command.format)
        return Done()

    def _load(self, command: Load) -> LoadDone | Changed:
        self._residents.import_format(command.format)
        done = self._residents.load(command)
        if isinstance(done, Changed):
            return done
        model = self._residents.get(command.handle)
        assert model is not None
        try:
            self._server.add_model(
                command.model,
                command.handle,
                platform=model.platform,
                inputs=model.inputs,
                outputs=model.outputs,
                row_wise=model.row_wise,
            )
        except Exception:
            del model
            self._residents.free(command.handle)
            raise
        self._handles[command.model] = command.handle
        return done

    def _send(self, number: int, message: Message) -> None:
        try:
            with self._sending:
                self._channel.sendall(encode(number, message))
        except OSError:
            os._exit(1)


def run_batch(batch: Batch, residents: Residents) -> None:
    """Run a batch and answer it, whatever happens. A larger batch that fails is halved by the server and comes back."""
    model = residents.get(batch.handle)
    if model is None:
        batch.fail(Code.UNAVAILABLE, "The model was unloaded while the request waited; send it again.")
        return
    try:
        results = model.infer(batch.inputs(), batch.outputs, batch.parameters)
    except BaseException as error:
        batch.fail(*_blame(error))
        return
    try:
        batch.reply(results)
    except (ValueError, TypeError) as error:
        batch.fail(Code.INTERNAL, f"The model's answer cannot be sent: {error}")


def _blame(error: BaseException) -> tuple[Code, str]:
    """Whose fault a failed inference is, in the protocol's codes. A model that wants to exit does not get to."""
    match error:
        case ModelMeshError():
            return code_of(error), error.message
        case ValueError() | TypeError():
            return Code.INVALID_ARGUMENT, f"The model refused the input: {error}"
        case MemoryError():
            return Code.RESOURCE_EXHAUSTED, "There was not enough memory to run the model."
        case _:
            return Code.INTERNAL, f"The model failed: {type(error).__name__}: {error}"


def _begin(channel: socket.socket) -> tuple[int, ModelServer] | None:
    """Wait for the first command and listen. None when there is nobody to serve, or no way to."""
    first = receive(channel)
    if first is None:
        return None
    number, serve = first
    if not isinstance(serve, Serve) or os.getppid() != serve.parent_pid:
        return None
    server = ModelServer(
        Path(serve.socket_path),
        Path(serve.executing_path),
        message_bytes_max=serve.message_bytes_max,
        stuck_after_s=serve.stuck_after_s,
        batch_rows_max=serve.batch_rows_max,
        batch_bytes_max=serve.batch_bytes_max,
    )
    try:
        server.start()
    except OSError as error:
        reason = f"The worker cannot listen on {serve.socket_path}: {error.strerror or error}."
        channel.sendall(encode(number, Refused(Code.UNAVAILABLE, reason)))
        return None
    return number, server


def main(arguments: list[str]) -> int:
    """`python -m modelmesh.worker FD`: FD is the worker's end of the control channel."""
    memory.die_with_parent()
    faulthandler.enable()
    logging.basicConfig(format="%(levelname)s worker %(process)d: %(message)s", level=logging.WARNING)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        channel = socket.socket(fileno=int(arguments[0]))
    except (IndexError, ValueError, OSError):
        print("A worker is started by `modelmesh serve`, not by hand.", file=sys.stderr)
        return 2
    begun = _begin(channel)
    if begun is not None:
        number, server = begun
        Worker(channel, server).run(number)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
