"""Certificates for tests of TLS, made on the spot by an authority that only the test knows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Certificate:
    """Files of one server's certificate: `cert` with its chain, `key`, and `ca`, who signed it."""

    cert: Path
    key: Path
    ca: Path


def make_certificate(
    directory: Path, *names: str, authority: trustme.CA | None = None
) -> Certificate:
    """A certificate for `names` (default: loopback), its files in `directory`, which is made."""
    authority = authority or trustme.CA()
    leaf = authority.issue_cert(*(names or ("localhost", "127.0.0.1", "::1")))
    directory.mkdir(parents=True, exist_ok=True)
    made = Certificate(directory / "cert.pem", directory / "key.pem", directory / "ca.pem")
    for blob in leaf.cert_chain_pems:
        blob.write_to_path(str(made.cert), append=True)
    leaf.private_key_pem.write_to_path(str(made.key))
    authority.cert_pem.write_to_path(str(made.ca))
    return made
