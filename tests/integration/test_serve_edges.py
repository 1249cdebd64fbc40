"""`modelmesh serve` with TLS and a data-plane config, as a client meets it."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from certificates import Authority

from modelmesh.testing.serving import Served, served, until, write_iris
from modelmesh.wire.generated import inference_pb2 as pb

INFER = "inference.GRPCInferenceService/ModelInfer"


class Secured:
    """An instance with TLS, and the folder of what it watches."""

    def __init__(self, instance: Served, authority: Authority, watched: Path) -> None:
        self.instance, self.authority, self.watched = instance, authority, watched

    def shown(self) -> str:
        """The certificate that a new connection is shown (PEM)."""
        host, _, port = self.instance.rest.removeprefix("https://").rpartition(":")
        return ssl.get_server_certificate((host, int(port)), timeout=20)

    def infer_code(self) -> grpc.StatusCode:
        credentials = grpc.ssl_channel_credentials(self.authority.certificate.read_bytes())
        with grpc.secure_channel(self.instance.grpc, credentials) as channel:
            call = channel.unary_unary(
                f"/{INFER}",
                request_serializer=pb.ModelInferRequest.SerializeToString,
                response_deserializer=pb.ModelInferResponse.FromString,
            )
            request = pb.ModelInferRequest(model_name="iris")
            tensor = request.inputs.add(name="x", datatype="FP64", shape=[1, 4])
            tensor.contents.fp64_contents.extend([5.1, 3.5, 1.4, 0.2])
            try:
                call(request, timeout=60)
            except grpc.RpcError as error:
                code: grpc.StatusCode = error.code()
                return code
            return grpc.StatusCode.OK


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    scratch = tmp_path_factory.mktemp("edges")
    write_iris(scratch / "models" / "iris")
    authority = Authority(scratch, "ours")
    certificate, key = authority.issue("server")
    config = scratch / "dataplane.json"
    config.write_text(json.dumps({"rpcConfigs": {INFER: {"idExtractionPath": [1], "vModelId": True}}}))
    flags = ("--tls-cert", str(certificate), "--tls-key", str(key), "--dataplane-config-path", str(config))
    flags += ("--payload-processors", f"logger:?iris#{INFER}")
    with served(scratch, str(scratch / "models"), "--memory", "600MiB", "--workers", "1", *flags) as instance:
        yield Secured(instance, authority, scratch)


def test_the_greeting_says_https_and_its_curl_line_works(secured: Secured) -> None:
    instance = secured.instance
    text = until(lambda: (out := instance.out.read_text()) and "Ctrl-C" in out and out, "the greeting", 60)
    assert f"REST  {instance.rest}" in text and instance.rest.startswith("https://")
    line = next(line.strip() for line in text.splitlines() if line.strip().startswith("curl "))
    assert "--cacert" in line
    pasted = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60, check=True)
    assert "error" not in json.loads(pasted.stdout)


def test_the_command_line_says_how_to_trust_the_certificate(
    secured: Secured, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = ("infer", "iris", "--data", "[[5.1, 3.5, 1.4, 0.2]]")
    refused = secured.instance.cli(*ask)
    assert refused.returncode != 0 and "SSL_CERT_FILE" in refused.stderr
    monkeypatch.setenv("SSL_CERT_FILE", str(secured.authority.certificate))
    trusted = secured.instance.cli(*ask)
    assert "SSL_CERT_FILE" not in trusted.stderr


def test_a_config_that_changes_takes_effect_and_a_broken_one_is_told(secured: Secured) -> None:
    config = secured.watched / "dataplane.json"
    before = config.read_text()
    assert secured.infer_code() is grpc.StatusCode.OK
    config.write_text('{"allowOtherRpcs": false}')
    until(lambda: secured.infer_code() is grpc.StatusCode.UNIMPLEMENTED, "the method is kept out")
    config.write_text('{"allowOtherRpc": true}')
    until(lambda: '"allowOtherRpc\\"' in secured.instance.err.read_text()
          or '"allowOtherRpc"' in secured.instance.err.read_text(), "the warning")  # fmt: skip
    assert secured.infer_code() is grpc.StatusCode.UNIMPLEMENTED
    config.write_text(before)
    until(lambda: secured.infer_code() is grpc.StatusCode.OK, "the method is let in")


def test_payloads_are_logged(secured: Secured) -> None:
    assert secured.infer_code() is grpc.StatusCode.OK
    says = f"Response of {INFER} for model iris@"
    until(lambda: says in secured.instance.err.read_text(), "the response in the log")


def test_a_renewed_certificate_is_picked_up(secured: Secured) -> None:
    before = secured.shown()
    certificate, key = secured.authority.issue("renewed")
    for new, old in ((key, "server.key"), (certificate, "server.pem")):
        shutil.move(new, secured.watched / old)
    until(lambda: secured.shown() != before, "the new certificate")
    assert secured.infer_code() is grpc.StatusCode.OK
    with httpx.Client(verify=ssl.create_default_context(cafile=str(secured.authority.certificate))) as client:
        assert client.get(f"{secured.instance.rest}/v2/health/live").status_code == 200


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--tls-cert", "/dev/null"), "tls_key is missing"),
        (("--tls-client-auth", "REQUIRE"), "tls_client_auth is given but no certificate"),
        (("--tls-cert", "/dev/null", "--tls-key", "/dev/null"), "holds no certificate"),
        (("--dataplane-config", '{"rpcConfigs": {"x": {}}}'), 'entry "x"'),
        (("--dataplane-config", "{}", "--dataplane-config-path", "/dev/null"), "both given"),
        (("--dataplane-config-path", "/nowhere/x.json"), "cannot be read"),
    ],
)
def test_what_cannot_be_used_stops_the_start_with_a_sentence(
    tmp_path: Path, flags: tuple[str, ...], says: str
) -> None:
    instance = Served(tmp_path, "--state", "memory", "--memory", "600MiB", "--workers", "1", *flags)
    assert instance.process.wait(60) != 0
    assert says in instance.err.read_text()
