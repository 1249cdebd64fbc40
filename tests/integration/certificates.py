"""Certificates for tests, made by the openssl command."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

PASSPHRASE = "correct horse"


def openssl(*arguments: str) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("There is no openssl to make certificates with.")
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)


class Authority:
    """Issues certificates, for 127.0.0.1 unless told otherwise, into `folder`, which also gets its own as `NAME-ca.pem`."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self.certificate, self.key = folder / f"{name}-ca.pem", folder / f"{name}-ca.key"
        openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
            *("-subj", f"/CN={name} CA", "-keyout", str(self.key), "-out", str(self.certificate)),
        )

    def issue(
        self,
        name: str,
        *,
        rsa: bool = False,
        names: str = "IP:127.0.0.1,DNS:localhost",
        use: str = "",
    ) -> tuple[Path, Path]:
        """A certificate and its key (PKCS#8). `names` and `use` as openssl writes subjectAltName and extendedKeyUsage; empty: it
        has no such extension."""
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        request, extensions = self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        lines = [("subjectAltName", names), ("extendedKeyUsage", use), ("basicConstraints", "CA:FALSE")]
        extensions.write_text("".join(f"{key}={value}\n" for key, value in lines if value))
        kind = ("rsa:2048",) if rsa else ("ec", "-pkeyopt", "ec_paramgen_curve:P-256")
        openssl(
            *("req", "-newkey", *kind, "-nodes", "-subj", f"/CN={name}"),
            *("-keyout", str(key), "-out", str(request)),
        )
        openssl(
            *("x509", "-req", "-in", str(request), "-CA", str(self.certificate), "-CAkey", str(self.key)),
            *("-CAcreateserial", "-days", "2", "-extfile", str(extensions), "-out", str(certificate)),
        )
        return certificate, key
