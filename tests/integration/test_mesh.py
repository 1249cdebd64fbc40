"""Several instances as real processes, one mesh: models are loaded once, answered by each, and outlive who held them."""

from __future__ import annotations

import json
import shutil
import signal
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from certificates import Authority
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from modelmesh.testing.etcd import Etcd, missing
from modelmesh.testing.serving import Served, until

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

ROW = [5.1, 3.5, 1.4, 0.2]
BODY = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP64", "data": ROW}]}
ANSWER = [10.2, 7.0, 2.8, 0.4]
MODELS = [f"m{n}" for n in range(8)]


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    with Etcd(tmp_path / "etcd") as etcd:
        yield etcd


@pytest.fixture
def models(strange: Callable[..., Path], tmp_path: Path) -> Path:
    """A folder with one model, iris, that doubles its input: a built-in format that takes no time to import."""
    folder = tmp_path / "models"
    (folder / "iris").mkdir(parents=True)
    shutil.move(strange("iris"), folder / "iris" / "model.strange")
    return folder


Start = Callable[..., Served]


@pytest.fixture
def start(etcd: Etcd, models: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts an instance by name; all that run at the end are ended."""
    started: list[Served] = []

    def begin(name: str, *more: str, grace: str = "10") -> Served:
        flags = ("--store", f"etcd:{etcd.endpoints}", "--service", "demo", "--instance-id", name)
        memory = ("--memory", "300MiB", "--workers", "1", "--grace", grace)
        started.append(Served(tmp_path / name, *flags, *memory, "--model-root", str(models), *more))
        return started[-1]

    yield begin
    for instance in started:
        instance.kill_all()


def register(instance: Served, models: Path) -> None:
    for model in MODELS:
        done = httpx.put(
            f"{instance.ops}/models/{model}", json={"type": "strange", "path": str(models / "iris")}
        )
        assert done.is_success, done.text


def infer(client: InferenceServerClient, model: str) -> Any:
    x = InferInput("x", [1, 4], "FP64")
    x.set_data_from_numpy(np.array([ROW]))
    answer = client.infer(model, [x], client_timeout=30)
    assert answer.as_numpy("predict").tolist() == [ANSWER]
    return answer


@contextmanager
def clients(instances: Sequence[Served]) -> Iterator[list[InferenceServerClient]]:
    with ExitStack() as stack:
        yield [stack.enter_context(InferenceServerClient(instance.grpc)) for instance in instances]


def ask_for_all(instances: Sequence[Served]) -> None:
    """Ask for all models at once, everywhere: each is loaded once."""
    with clients(instances) as grpc, ThreadPoolExecutor(len(MODELS) * len(instances)) as pool:
        asked = [pool.submit(infer, client, model) for model in MODELS for client in grpc]
        for answer in asked:
            answer.result()
    assert loads(instances) == len(MODELS)
    assert len(holders(instances)) > 1, "the models are spread over the instances"


def about(instance: Served) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{instance.ops}/instance").json()
    return found


def loads(instances: Sequence[Served]) -> int:
    return sum(about(instance)["loads_total"] for instance in instances)


def holders(instances: Sequence[Served]) -> dict[str, Served]:
    """Who holds at least one model."""
    return {instance.scratch.name: instance for instance in instances if about(instance)["models_loaded"]}


class Traffic:
    """Asks for all models at instances in turn, as long as it is entered, passing over those that say they are not ready, as a
    load balancer would. Nothing is repeated."""

    def __init__(self, instances: Sequence[Served]) -> None:
        self._instances = instances
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.sent: dict[str, int] = {instance.scratch.name: 0 for instance in instances}
        self.failures: list[str] = []

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join(60)

    def _run(self) -> None:
        with httpx.Client() as http, clients(self._instances) as grpc:
            doors = zip(cycle(range(len(self._instances))), cycle(MODELS), strict=False)
            for turn, model in doors:
                if self._over.is_set():
                    return
                instance = self._instances[turn]
                try:
                    ready = http.get(f"{instance.ops}/ready").status_code == 200
                except httpx.HTTPError:
                    ready = False
                if not ready:
                    self._over.wait(0.002)
                    continue
                try:
                    infer(grpc[turn], model)
                    self.sent[instance.scratch.name] += 1
                except InferenceServerException as error:
                    self.failures.append(f"{model} at {instance.scratch.name}: {error}")

    def more(self, n: int) -> None:
        """Wait for so many more answers."""
        before = sum(self.sent.values())
        until(lambda: sum(self.sent.values()) >= before + n or self.failures, f"{n} more answers")
        assert self.failures == []


def test_models_are_loaded_once_and_outlive_who_held_them(start: Start, models: Path) -> None:
    instances = [start(name) for name in "abc"]
    for instance in instances:
        instance.wait_ready()
    register(instances[0], models)
    ask_for_all(instances)
    with clients(instances) as grpc:
        for model in MODELS:
            for instance, client in zip(instances, grpc, strict=True):
                assert infer(client, model).get_response().model_name == model
                rest = httpx.post(f"{instance.rest}/v2/models/{model}/infer", json=BODY, timeout=30)
                assert rest.json()["outputs"][0]["data"] == ANSWER, rest.text
    assert loads(instances) == len(MODELS)

    dies = next(iter(holders(instances).values()))
    survivors = [instance for instance in instances if instance is not dies]
    lost = about(dies)["models_loaded"]
    loaded = loads(survivors)
    with Traffic(survivors) as traffic:
        traffic.more(50)
        dies.kill_all()
        traffic.more(200)
    assert traffic.failures == []
    assert all(traffic.sent.values())
    assert loads(survivors) == loaded + lost, "what it held is loaded elsewhere, once"

    dies.ready_file.unlink()
    again = start(dies.scratch.name).wait_ready()
    with clients([again]) as (client,):
        for model in MODELS:
            infer(client, model)
    assert loads([again, *survivors]) == loaded + lost, "it is another life, and knows who holds what"


def test_an_instance_that_is_stopped_or_joins_under_traffic_costs_no_request(
    start: Start, models: Path
) -> None:
    instances = [start(name) for name in "abc"]
    for instance in instances:
        instance.wait_ready()
    register(instances[0], models)
    ask_for_all(instances)
    with Traffic(instances) as traffic:
        traffic.more(100)
        leaves = next(iter(holders(instances).values()))
        held = about(leaves)["models_loaded"]
        assert leaves.stop(signal.SIGTERM) == 0
        leaves.assert_nothing_left()
        traffic.more(100)
        joins = start("d")
        joins.wait_ready()
        traffic.more(100)
        hooked = next(instance for instance in instances if instance is not leaves)
        assert httpx.get(f"{hooked.ops}/prestop", timeout=60).text == "drained\n"
        assert about(hooked)["draining"]
        assert hooked.stop(signal.SIGTERM) == 0
        traffic.more(100)
    assert traffic.failures == []
    with clients([joins]) as (client,):
        for model in MODELS:
            infer(client, model)
    stay = [joins, *(instance for instance in instances if instance not in (leaves, hooked))]
    assert sum(about(instance)["models_loaded"] for instance in stay) == len(MODELS)
    assert f"{held} of {held} models in use were loaded elsewhere" in leaves.err.read_text()


def test_instances_know_each_other_by_certificates_also_by_new_ones(
    start: Start, models: Path, tmp_path: Path
) -> None:
    before, after = Authority(tmp_path, "before"), Authority(tmp_path, "after")
    trust = tmp_path / "trust"
    trust.mkdir()
    shutil.copy(before.certificate, trust)
    (trust / "README").write_text("Who may be an instance.")

    def certified(name: str, authority: Authority, names: str = "") -> tuple[str, ...]:
        """The flags; the files get a new certificate."""
        for source, kind in zip(authority.issue(f"new-{name}", names=names), ("pem", "key"), strict=True):
            shutil.move(source, tmp_path / f"{name}.{kind}")
        files = ("--peer-tls-cert", f"{tmp_path / name}.pem", "--peer-tls-key", f"{tmp_path / name}.key")
        return (*files, "--peer-tls-trust", str(trust))

    def shows(instance: Served) -> bool:
        """Whether it shows the certificate in its file. That files were read anew may be said of others."""
        host, _, port = instance.peer.rpartition(":")
        shown = ssl.get_server_certificate((host, int(port)))
        return shown.split() == (tmp_path / f"{instance.scratch.name}.pem").read_text().split()

    a, b = (start(name, *certified(name, before)) for name in "ab")
    for instance in (a, b):
        instance.wait_ready()
    register(a, models)
    with clients([a, b]) as grpc:
        for model in MODELS:
            for client in grpc:
                infer(client, model)
    assert loads([a, b]) == len(MODELS)

    shutil.copy(after.certificate, trust)
    for instance in (a, b):
        certified(instance.scratch.name, after, "DNS:mesh")
        until(lambda at=instance: shows(at), "the new certificate is in force")
    (trust / before.certificate.name).unlink()
    c = start("c", *certified("c", after, "IP:127.0.0.1")).wait_ready()
    with clients([c]) as (client,):
        for model in MODELS:
            infer(client, model)
    assert loads([a, b, c]) == len(MODELS)

    stranger = start("stranger").wait_ready()
    with clients([stranger]) as (client,):
        infer(client, MODELS[0])
    assert loads([stranger]) == 1, "it reaches nobody, so it loads what it is asked for"
    assert f"The instance a at {a.peer} does not answer" in stranger.err.read_text()
    assert f"instance stranger: The instance at {stranger.peer} speaks no TLS" in a.err.read_text()


def test_several_instances_serve_one_folder_and_the_same_static_models(
    start: Start, models: Path, tmp_path: Path
) -> None:
    static = [
        {"modelId": "s1", "modelInfo": {"type": "strange", "path": str(models / "iris")}, "vModelId": "s"}
    ]
    flags = ("--static-models", json.dumps(static))
    a, b = (start(name, str(models), *flags, grace="2") for name in "ab")
    for instance in (a, b):
        instance.wait_ready()
        assert [model["id"].partition("@")[0] for model in listed(instance)] == ["iris", "s1"]
        assert httpx.get(f"{instance.ops}/vmodels/s").json()["active"] == "s1"
    shutil.copytree(models / "iris", models / "rose")
    for instance in (a, b):
        until(lambda at=instance: len(listed(at)) == 3, "the new model is registered")
    shutil.rmtree(models / "rose")
    for instance in (a, b):
        until(lambda at=instance: len(listed(at)) == 2, "it is unregistered")

    other = tmp_path / "other"
    other.mkdir()
    refused = start("c", str(other))
    assert refused.process.wait(30) != 0
    assert f"{other} is not the folder that the service demo serves: instance" in refused.err.read_text()
    assert len(listed(a)) == 2, "nothing was unregistered"
    assert a.stop() == b.stop() == 0
    start("d", str(other)).wait_ready()


def listed(instance: Served) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = httpx.get(f"{instance.ops}/models").json()["models"]
    return sorted(found, key=lambda model: str(model["id"]))


def test_any_instance_shows_the_mesh_and_passes_orders_on(start: Start, models: Path) -> None:
    a, b, c = [start(name, "--zone", f"z{name}").wait_ready() for name in "abc"]
    register(a, models)

    def members(instance: Served) -> dict[str, dict[str, Any]]:
        answer = httpx.get(f"{instance.ops}/instances", timeout=30).json()
        return {each["id"]: each for each in answer["instances"]}

    def listed(asked: Served, **query: str) -> dict[str, list[str]]:
        found = httpx.get(f"{asked.ops}/models", params={"state": "loaded", **query}, timeout=30).json()[
            "models"
        ]
        return {model["id"]: sorted(copy["instance"] for copy in model["copies"]) for model in found}

    until(lambda: list(members(a)) == ["a", "b", "c"], "all are known")
    ask_for_all([a, b, c])
    everywhere = listed(a)
    assert set(everywhere) == set(MODELS)
    until(lambda: listed(b) == listed(c) == listed(a), "all show the same copies")
    assert {model for model, holders in everywhere.items() if "b" in holders} == set(listed(c, instance="b"))
    assert [model["id"] for model in b.cli_json("list", "--state", "loaded")["models"]] == sorted(MODELS)

    assert a.cli("cordon", "c").returncode == 0
    until(lambda: members(b)["c"]["cordoned"], "it is told")
    assert not members(c)["b"]["cordoned"]
    held = listed(a, instance="c")
    for n in range(6):
        body = {"type": "strange", "path": str(models / "iris")}
        assert httpx.put(f"{b.ops}/models/later-{n}", json=body).is_success
        answer = httpx.post(f"{c.rest}/v2/models/later-{n}/infer", json=BODY, timeout=30)
        assert answer.is_success, answer.text
    assert listed(a, instance="c") == held

    (holder,) = listed(a)["later-0"]
    story = c.cli_json("explain", "later-0")
    assert story["answered"] == ["a", "b", "c"] and not story["unanswered"]
    assert ("loaded", holder) in [(entry["did"], entry["instance"]) for entry in story["entries"]]

    b.process.send_signal(signal.SIGSTOP)
    try:
        until(lambda: members(a)["b"]["suspected"], "it is suspected")
        assert [each["instance"] for each in a.cli_json("explain", "later-0")["unanswered"]] == ["b"]
    finally:
        b.process.send_signal(signal.SIGCONT)
    until(lambda: not members(a)["b"]["suspected"] and not members(c)["b"]["suspected"], "it answers again")

    assert a.cli("uncordon", "c").returncode == 0
    assert a.cli("config", "set", "log_level", "debug").returncode == 0
    until(lambda: "log_level is debug now" in c.err.read_text(), "the setting arrives")
    assert c.cli("drain", "b").returncode == 0

    until(lambda: members(a)["b"]["draining"] and not members(a)["b"]["copies"], "it has handed over")
    for model in MODELS:
        assert httpx.post(f"{a.rest}/v2/models/{model}/infer", json=BODY, timeout=30).is_success
