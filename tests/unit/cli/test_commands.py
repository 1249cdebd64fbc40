"""The commands against an ops port over a control plane without a mesh: what they print and how they end."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from modelmesh.cli import main as cli
from modelmesh.cli.exits import Exit
from modelmesh.cli.quantities import parse_duration_s
from modelmesh.mesh.views import SideView
from modelmesh.ops import config, instance_schemas, schemas
from modelmesh.peers.protocol import Remembered
from modelmesh.registry.keep import Keep
from modelmesh.testing.control import FakeControlPlane, member_view
from modelmesh.testing.ops import parts_over, served_ops


@dataclass
class Result:
    exit_code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Result]


@pytest.fixture
def control() -> FakeControlPlane:
    return FakeControlPlane()


@pytest.fixture
def rest() -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """A REST port that tells of one input and echoes; with what it was asked."""
    asked: list[tuple[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        timeout = 5  # whoever connects and says nothing must not keep the test waiting

        def do_GET(self) -> None:
            asked.append((self.path, None))
            self._answer(200, {"name": "m", "inputs": [{"name": "X", "datatype": "FP32", "shape": [-1, 2]}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"] or 0)) or "null")
            asked.append((self.path, body))
            if "bad" in self.path:
                self._answer(400, {"error": "The input X has the wrong shape."})
            else:
                self._answer(200, {"model_name": "m", "outputs": body["inputs"]})

        def _answer(self, status: int, value: object) -> None:
            raw = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join(10)


@pytest.fixture
def run(
    control: FakeControlPlane,
    rest: tuple[str, list[tuple[str, Any]]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Run]:
    with served_ops(parts_over(control, rest=rest[0])) as url:
        monkeypatch.setenv("MODELMESH_OPS", url)

        def call(*arguments: str) -> Result:
            with pytest.raises(SystemExit) as ended:
                cli.main(list(arguments))
            out, err = capsys.readouterr()
            return Result(int(ended.value.code or 0), out, err)

        yield call


def rows(text: str) -> list[list[str]]:
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]


def test_a_model_from_registration_to_removal(run: Run) -> None:
    assert run("list").out == "No models.\n"
    Path("models/iris").mkdir(parents=True)
    registered = run("register", "team/iris", "--type", "sklearn", "--path", "models/iris")
    assert registered.out == "Registered team/iris; it is cold.\n"
    assert run("load", "team/iris").out == "team/iris is loaded.\n"
    listed = rows(run("list").out)
    assert listed[0] == ["NAME", "MODEL", "TYPE", "STATE", "SIZE", "REQ/S", "LAST USED"]
    assert listed[1][:5] == ["-", "team/iris", "sklearn", "loaded", "1.00 MiB"]
    assert ["path", str(Path("models/iris").absolute())] in rows(run("status", "team/iris").out)
    assert run("unload", "team/iris").out == "team/iris is cold.\n"
    assert run("unregister", "team/iris").exit_code == Exit.OK
    gone = run("status", "team/iris")
    assert (gone.exit_code, gone.err) == (
        Exit.REFUSED,
        'There is no model or vmodel "team/iris". See what there is with: modelmesh list.\n',
    )


def test_what_went_wrong_with_a_load_is_told(run: Run, control: FakeControlPlane) -> None:
    control.broken["bad"] = "It is not a pickle."
    result = run("register", "bad", "--type", "sklearn", "--path", "/m", "--load")
    assert result.exit_code == Exit.REFUSED
    assert result.err == "It did not load: It is not a pickle.\n"
    assert "INVALID_ARGUMENT: It is not a pickle." in run("status", "bad").out


def test_lists_are_cut_for_people_and_whole_for_programs(run: Run) -> None:
    lines = "".join(json.dumps({"id": f"m{number:04}", "type": "onnx"}) + "\n" for number in range(1_100))
    source = Path.cwd() / "models.jsonl"
    source.write_text(lines)
    assert run("register", "--from", str(source)).out == "Registered 1100 models.\n"
    shown = run("list").out.splitlines()
    assert len(shown) == 102
    assert shown[-1] == "100 of 1100 shown; --limit shows more."
    whole = run("list", "--json").json
    assert (len(whole["models"]), whole["total"]) == (1_100, 1_100)
    assert len(run("list", "m10", "--json").json["models"]) == 100
    assert len(run("list", "--limit", "7", "--json").json["models"]) == 7
    assert run("list", "--state", "loaded").out == "No model matches.\n"


def test_registering_many_names_what_was_refused(run: Run, control: FakeControlPlane) -> None:
    source = Path.cwd() / "models.csv"
    source.write_text("id,type,path\na,sklearn,a.joblib\n,onnx,b\nc,onnx,/c\nd,onnx,d\n")
    Path("a.joblib").touch()
    result = run("register", "--from", str(source))
    assert (result.exit_code, result.out) == (Exit.PARTLY, "Registered 3 models.\n")
    assert result.err.startswith("entry 2 (): ")
    assert result.err.endswith("1 registration was refused.\n")
    assert control.registered["a"].path == str(Path("a.joblib").absolute())
    assert control.registered["c"].path == "/c"
    assert control.registered["d"].path == "d"
    as_json = run("register", "--from", str(source), "--json")
    assert as_json.json["failures"][0]["entry"] == 2


def test_a_type_that_nothing_serves_has_to_be_forced(run: Run, control: FakeControlPlane) -> None:
    control.served = ("onnx", "sklearn")
    result = run("register", "m", "--type", "onxx", "--path", "/m")
    assert result.exit_code == Exit.REFUSED
    assert (
        "Did you mean onnx? To register it all the same, force it: modelmesh register --force" in result.err
    )
    assert run("register", "m", "--type", "onxx", "--path", "/m", "--force").exit_code == Exit.OK
    source = Path.cwd() / "models.csv"
    source.write_text("id,type\na,sklaern\nb,onnx\n")
    assert "Did you mean sklearn?" in run("register", "--from", str(source)).err
    assert run("register", "--from", str(source), "--force").out == "Registered 2 models.\n"
    assert set(control.registered) == {"m", "a", "b"}


def test_how_a_model_is_kept_is_said_when_registering_and_changed_later(
    run: Run, control: FakeControlPlane
) -> None:
    flags = ("--min-copies", "2", "--max-copies", "4", "--pin", "--priority", "2.5")
    registered = run("register", "m", "--type", "onnx", "--path", "/m", *flags, "--json").json
    kept = {"min_copies": 2, "max_copies": 4, "pin": True, "priority": 2.5}
    assert {name: registered[name] for name in kept} == kept
    assert "at least 2 copies loaded, at most 4 copies, not evicted, priority 2.5" in run("status", "m").out
    changed = run("register", "m", "--no-pin", "--min-copies", "1")
    assert changed.out == "m is kept as asked: at least 1 copy loaded, at most 4 copies, priority 2.5.\n"
    assert run("register", "m", "--type", "onnx", "--path", "/m").exit_code == Exit.OK
    assert run("list", "--json").json["models"][0]["min_copies"] == 1
    refused = run("register", "m", "--min-copies", "9")
    assert (refused.exit_code, refused.err[:43]) == (
        Exit.REFUSED,
        "At least 9 copies are more than at most 4: ",
    )
    assert "modelmesh list" in run("register", "nothing", "--pin").err


def test_how_many_are_kept_is_said_for_all_or_for_each(run: Run, control: FakeControlPlane) -> None:
    source = Path.cwd() / "models.csv"
    source.write_text("id,type,min_copies,pin,priority\na,onnx,2,true,0.5\nb,onnx,,,\nc,onnx,some,,\n")
    result = run("register", "--from", str(source), "--max-copies", "3")
    assert result.exit_code == Exit.PARTLY
    assert result.err.startswith("entry 3 (): Line 3: min_copies: Input should be a valid integer")
    assert control.registered["a"].keep == Keep(2, 3, True, 0.5)
    assert control.registered["b"].keep == Keep(max_copies=3)


def test_registering_many_from_stdin(
    run: Run, control: FakeControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"id": "a", "type": "onnx"}\n\n')))
    assert run("register", "--from", "-").exit_code == Exit.OK
    assert set(control.registered) == {"a"}


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("m.jsonl", "{", "m.jsonl, line 1: not JSON"),
        ("m.jsonl", "\n[]", "m.jsonl, line 2: not a JSON object."),
        ("m.csv", "name,kind\n", "m.csv: the first line must name the columns: id,type,path,key,min_copies"),
    ],
)
def test_files_that_are_none(run: Run, name: str, text: str, sentence: str) -> None:
    (Path.cwd() / name).write_text(text)
    result = run("register", "--from", name)
    assert result.exit_code == Exit.USAGE
    assert result.err.startswith(sentence)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["register"], "Give either an ID with --type and --path, or --from FILE."),
        (["register", "a", "--from", "f"], "Give either an ID"),
        (["register", "a"], "--type is missing"),
        (
            ["register", "--from", "none.jsonl"],
            "--from: none.jsonl cannot be read: No such file or directory.",
        ),
        (["infer", "m", "--data", "{"], "--data is not JSON"),
        (["infer", "m", "--data", "7"], "--data is neither an object"),
        (["infer", "m", "--data", "@none"], "--data: none cannot be read"),
        (["list", "--ops", "localhost"], '--ops: "localhost" is not a URL'),
    ],
)
def test_wrong_command_lines(run: Run, arguments: list[str], sentence: str) -> None:
    result = run(*arguments)
    assert result.exit_code == Exit.USAGE
    assert result.err.startswith(sentence)


def test_unknown_commands_are_usage_errors(run: Run) -> None:
    assert run("frobnicate").exit_code == Exit.USAGE
    assert run("list", "--frobnicate").exit_code == Exit.USAGE


def test_no_instance_says_what_to_do(run: Run) -> None:
    result = run("list", "--ops", "http://127.0.0.1:1")
    assert result.exit_code == Exit.NO_INSTANCE
    assert result.err.startswith(
        "Nothing listens at http://127.0.0.1:1. Is an instance running? Start one with: "
    )


def test_another_server_is_recognised(run: Run, rest: tuple[str, list[tuple[str, Any]]]) -> None:
    result = run("load", "bad", "--ops", rest[0])
    assert result.exit_code != Exit.OK
    assert "Traceback" not in result.err


def test_an_instance_of_another_version_is_told_in_a_sentence(run: Run) -> None:
    class Older(BaseHTTPRequestHandler):
        """Knows some paths, and tells little there."""

        def do_GET(self) -> None:
            known = self.path.partition("?")[0] in ("/instance", "/models", "/explain/m")
            self._answer({"id": "a", "version": "0.0.1"} if known else None)

        def do_POST(self) -> None:
            self._answer(None)

        def _answer(self, value: object) -> None:
            error = {
                "error": {"code": "NOT_FOUND", "message": f"There is nothing at {self.path}; see /docs."}
            }
            raw = json.dumps(value or error).encode()
            self.send_response(200 if value else 404)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Older) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        for command, what in {
            "list": '"total"',
            "status": "/instances",
            "explain m": '"now"',
            "config list": "/config",
            "cordon a": "/instances/a:cordon",
        }.items():
            result = run(*command.split(), "--ops", url)
            begins = (
                f"The instance at {url} knows no {what}, which this command needs: its version is 0.0.1, and"
            )
            assert (result.exit_code, result.err[: len(begins)]) == (Exit.REFUSED, begins)
        server.shutdown()
        thread.join(10)


def test_infer_with_rows_asks_what_the_model_takes(run: Run, rest: tuple[str, list[tuple[str, Any]]]) -> None:
    answer = run("infer", "team/iris", "--data", "[[1.5, 2], [3, 4]]").json
    assert answer["outputs"] == [
        {"name": "X", "shape": [2, 2], "datatype": "FP32", "data": [[1.5, 2], [3, 4]]}
    ]
    assert [path for path, _ in rest[1]] == ["/v2/models/team%2Firis", "/v2/models/team%2Firis/infer"]


def test_infer_passes_a_request_on(run: Run, tmp_path: Path) -> None:
    request = {"inputs": [{"name": "X", "shape": [1], "datatype": "BYTES", "data": ["é"]}]}
    (tmp_path / "request.json").write_text(json.dumps(request))
    assert run("infer", "m", "--data", f"@{tmp_path}/request.json").json["outputs"] == request["inputs"]
    refused = run("infer", "bad", "--data", json.dumps(request))
    assert (refused.exit_code, refused.err) == (Exit.REFUSED, "The input X has the wrong shape.\n")


def test_vmodels(run: Run) -> None:
    run("register", "m1", "--type", "onnx", "--path", "/m")
    assert run("vmodel", "set", "v", "m1", "--owner", "us").out == "v: active m1, target settled\n"
    assert run("vmodel", "get", "v", "--json").json["owner"] == "us"
    assert rows(run("vmodel", "list").out)[1] == ["v", "m1", "settled", "us"]
    assert run("vmodel", "set", "v", "m1", "--owner", "them").exit_code == Exit.REFUSED
    assert run("vmodel", "delete", "v").out == "Removed v.\n"
    assert run("vmodel", "list").out == "No vmodels.\n"
    assert run("vmodel", "get", "v").err.startswith('There is no vmodel "v". ')


def test_a_canary_and_how_it_does(run: Run, control: FakeControlPlane) -> None:
    for model in ("m1", "m2"):
        run("register", model, "--type", "onnx", "--path", "/m")
    run("vmodel", "set", "v", "m1")
    begun = run("vmodel", "set", "v", "m2", "--canary", "5%", "--canary-for", "2h", "--canary-requests", "7")
    assert begun.out.startswith("v: active m1, target m2 (canary, 5 %)\n")
    view = control.names["v"]
    assert view.canary is not None
    assert (view.canary.share, view.canary.for_s, view.canary.requests) == (0.05, 7200.0, 7)
    going = replace(
        view.canary, active=SideView(4600, 3, 0.0012), target=SideView(240, 0, 0.0013), outlook="It is fine."
    )
    control.names["v"] = replace(view, canary=going)
    lines = rows(run("vmodel", "get", "v").out)
    assert lines[1:4] == [
        ["MODEL", "SHARE", "REQUESTS", "ERRORS", "MEAN"],
        ["m1", "95 %", "4,600", "3", "1.2 ms"],
        ["m2", "5 %", "240", "0", "1.3 ms"],
    ]
    assert re.fullmatch(r"Begun \d+ s ago: It is fine\.", lines[4][0])
    control.names["v"] = replace(
        view,
        target_failed=True,
        reason="It failed.",
        canary=replace(going, active=None, target=None, outlook=""),
    )
    assert run("vmodel", "get", "v").out == "v: active m1, target m2 (given up: It failed.)\n"
    loading = replace(going, since_wall_s=0.0, active=None, target=None, outlook="")
    control.names["v"] = replace(view, canary=loading)
    assert run("vmodel", "get", "v").out == "v: active m1, target m2 (canary, 5 %, once it is loaded)\n"
    assert "canary" in rows(run("vmodel", "list").out)[1][2]
    for wrong in (("--canary", "many"), ("--canary", "5%", "--canary-for", "soon"), ("--canary", "0%")):
        assert run("vmodel", "set", "v", "m2", *wrong).exit_code in (Exit.USAGE, Exit.REFUSED)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("1.5 min", 90), ("2H", 7200), ("1d", 86400), ("250ms", 0.25)],
)
def test_times_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_duration_s("--for", text) == seconds


def test_explain_is_a_story(run: Run, control: FakeControlPlane) -> None:
    run("register", "m", "--type", "onnx", "--path", "/m")
    run("load", "m")
    text = run("explain", "m").out
    assert text.startswith('Model "m" is loaded: 1.00 MiB measured')
    assert rows(text)[-1][1:] == ["loaded", "it was asked for (size 1.00 MiB)"]
    assert run("explain", "ghost").exit_code == Exit.REFUSED


def test_status_and_top_show_the_instance(run: Run) -> None:
    run("register", "m", "--type", "onnx", "--path", "/m")
    run("load", "m")
    status = dict(row for row in rows(run("status").out) if len(row) == 2)
    assert status["worker 0"] == "60.0 MiB PSS: 45.0 MiB base, 1.00 MiB models"
    assert status["models"] == "1 registered, 1 loaded, 0 failed; 0 vmodels"
    top = run("top", "--once").out
    assert "worker 0" in top
    assert rows(top)[-1][:2] == ["-", "m"]
    assert [model["id"] for model in run("top", "--json").json["busiest"]] == ["m"]


def test_a_mesh_is_shown_from_any_instance(run: Run, control: FakeControlPlane) -> None:
    control.others = [
        replace(member_view("b"), zone="z2", draining=True, price=2e-9),
        replace(member_view("c"), suspected=True, trouble="It refused the certificate of this one."),
    ]
    run("register", "m", "--type", "onnx", "--path", "/m")
    run("load", "m")
    control.registered["m"] = replace(control.registered["m"], requests_per_s=3.0)
    listed = rows(run("list", "--instance", "fake", "--sort", "rate").out)
    assert listed[0][4] == "COPIES"
    assert listed[1][3:7] == ["loaded", "fake", "1.00 MiB", "3"]
    *shown, last = rows(run("instances").out)
    assert last == ["c: It refused the certificate of this one."]
    assert shown[0][:3] == ["INSTANCE", "ZONE", "CONDITION"]
    assert [row[:3] for row in shown[1:]] == [
        ["b", "z2", "draining"],
        ["c", "z1", "no answer"],
        ["fake *", "z1", "ok"],
    ]
    assert shown[1][3:] == [
        "0", "1.00 GiB", "512 MiB", "7.55 s/h/MiB", "25%", "2.5", "1+2, 0 s", "3", "4", shown[1][-1]
    ]  # fmt: skip
    assert "draining" in run("status").out and "draining" in run("top", "--once").out
    assert [each["id"] for each in run("top", "--json").json["instances"]] == ["b", "c", "fake"]
    assert [each["zone"] for each in run("instances", "--json").json["instances"]] == ["z2", "z1", "z1"]
    unknown = run("list", "--instance", "nobody")
    assert (unknown.exit_code, unknown.err) == (
        Exit.REFUSED,
        'There is no instance "nobody" in this mesh; see who is there with: modelmesh instances\n',
    )


def test_instances_are_cordoned_by_way_of_any_other(run: Run, control: FakeControlPlane) -> None:
    control.others = [member_view("b")]
    assert run("cordon", "b").out.startswith("b is cordoned: ")
    assert run("cordon").out.startswith("fake is cordoned: ")
    assert [row[1] for row in rows(run("instances").out)[1:]] == ["cordoned", "cordoned"]
    assert "ready, cordoned" in run("status").out
    assert run("uncordon", "b").out == "b takes models again.\n"
    assert control.cordoned == {"fake"}
    assert run("drain", "fake").exit_code == Exit.OK
    assert control.draining
    assert run("drain").exit_code == Exit.USAGE
    assert run("cordon", "nobody").exit_code == Exit.REFUSED


def test_settings_are_changed_while_instances_run(run: Run) -> None:
    assert rows(run("config", "list").out)[1:] == [
        ["load_failure_expiry", "450", "start", "450"],
        ["log_level", "info", "start", "info"],
    ]
    assert run("config", "set", "log_level", "debug").out == "log_level is debug now, in all instances.\n"
    assert run("config", "get", "log_level").out == "debug\n"
    assert rows(run("config", "list").out)[2] == ["log_level", "debug", "store", "info"]
    wrong = run("config", "set", "log_level", "loud")
    assert (wrong.exit_code, wrong.err) == (
        Exit.REFUSED,
        'log_level: "loud" is none of debug, info, warning, error.\n',
    )
    assert run("config", "get", "memory").err.startswith('"memory" is no setting that can be changed')
    Path("level.txt").write_text("error")
    assert run("config", "set", "log_level", "@level.txt", "--json").json["value"] == "error"
    assert run("config", "set", "log_level", "@none").exit_code == Exit.USAGE
    assert run("config", "unset", "log_level").out.startswith("The store says nothing of log_level now; ")
    listed = run("config", "list", "--json").json
    assert [setting["stored"] for setting in listed["settings"]] == [None, None]


def test_a_story_is_told_by_all_instances(run: Run, control: FakeControlPlane) -> None:
    control.others = [member_view("b"), member_view("c")]
    at_s = control.clock.wall_s() - 60
    control.remembered["b"] = [Remembered(7, at_s, "placed", "m", "Placed at fake.", {"cost_s": 0.5})]
    run("register", "m", "--type", "onnx", "--path", "/m")
    run("load", "m")
    text = run("explain", "m").out
    assert text.startswith('Model "m" is loaded in fake: 1.00 MiB measured')
    assert "Instance c could not be asked: The instance c does not answer." in text
    told = rows(text)
    assert [row[1:3] for row in told[-3:]] == [["b", "placed"], ["fake", "registered"], ["fake", "loaded"]]
    assert told[-3][3] == "Placed at fake. (cost 0.5 s)"
    assert [entry["instance"] for entry in run("explain", "m", "--json").json["entries"]] == [
        "b",
        "fake",
        "fake",
    ]


def test_markup_in_ids_is_shown_as_it_is(run: Run) -> None:
    run("register", "[red]m[/]", "--type", "onnx", "--path", "/m")
    assert "[red]m[/]" in run("list").out
    run("load", "[red]m[/]")
    for command in (["top", "--once"], ["status", "[red]m[/]"], ["explain", "[red]m[/]"]):
        assert "[red]m[/]" in run(*command).out


def test_version(run: Run) -> None:
    assert re.fullmatch(r"modelmesh \d+\.\d+\.\d+\n", run("--version").out)


def test_serve_refuses_wrong_settings_in_one_sentence(run: Run) -> None:
    result = run("serve", "--memory", "12 parrots")
    assert result.exit_code == Exit.NOT_STARTED
    assert result.err.startswith('--memory: "12 parrots" is not a size')
    assert result.err.count("\n") == 1


def test_the_page_lists_commands_exits_and_schemas() -> None:
    page = (Path(__file__).parents[3] / "docs" / "cli.md").read_text()
    commands = {
        command.split()[0] for command in re.findall(r"^\| `modelmesh ([^`]+)` \|", page, re.MULTILINE)
    }
    assert commands == set(cli.COMMANDS)
    exits = re.findall(r"^\| (\d) \| (\w+) \|", page, re.MULTILINE)
    assert {name: int(code) for code, name in exits} == {each.name: each.value for each in Exit}
    fields = dict(re.findall(r"^\| (\w+) \| (`id`.*|`\w+`(?:, `\w+`)+) \|$", page, re.MULTILINE))
    for name, listed in fields.items():
        schema = next(
            getattr(module, name) for module in (schemas, instance_schemas, config) if hasattr(module, name)
        )
        assert re.findall(r"`(\w+)`", listed) == list(schema.model_fields)
    assert set(fields) >= {"Model", "Copy", "Instance", "MeshInstance", "Story", "StoryEntry", "VModel"}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
