"""TLS of our servers and of our calls: contexts made of the files that an operator names.

A file that cannot be used is a SettingsError at the start, naming the flag and the file. Every context
speaks TLS 1.2 or newer.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from kodolly.errors import SettingsError

CERT_FLAG, KEY_FLAG, CA_FLAG = "--tls-cert", "--tls-key", "--tls-ca"
END_OF_CERTIFICATE = "-----END CERTIFICATE-----"


def server_context(cert: str | None, key: str | None) -> ssl.SSLContext | None:
    """The context of a server; None without files: it speaks plain HTTP.

    `cert`: PEM file with the certificate and those between it and its authority. `key`: PEM file with
    its private key, not encrypted. Raises SettingsError.
    """
    if not cert and not key:
        return None
    if not cert or not key:
        here, other = (CERT_FLAG, KEY_FLAG) if cert else (KEY_FLAG, CERT_FLAG)
        raise SettingsError(f"{here} needs {other}: TLS takes a certificate and its private key")
    _require_readable(CERT_FLAG, cert)
    _require_readable(KEY_FLAG, key)
    _check_certificates(CERT_FLAG, cert)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # A password is refused, or OpenSSL would ask for one at the terminal and wait.
        context.load_cert_chain(cert, key, password=_no_password)
    except ssl.SSLError as error:
        raise SettingsError(f"{KEY_FLAG}: {_key_problem(error, cert, key)}") from error
    except ValueError as error:
        raise SettingsError(f"{KEY_FLAG}: {key}: {error}") from error
    return context


def client_context(ca: str | None = None) -> ssl.SSLContext:
    """The context of our calls: trusts the machine's authorities, and those in the PEM file `ca`.

    Raises SettingsError.
    """
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca:
        _require_readable(CA_FLAG, ca)
        _check_certificates(CA_FLAG, ca)
        context.load_verify_locations(cafile=ca)
    return context


def pinned_context(cert: str, flag: str = CERT_FLAG) -> ssl.SSLContext:
    """The context of calls to a server whose certificate is in the PEM file `cert`, and to no other.

    Its host name is not compared: on this machine the server is reached by a loopback address, which
    a certificate for the world does not name. `flag`: named in errors. Raises SettingsError.
    """
    _require_readable(flag, cert)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    # Only the first certificate of the file is the server's own; the others have signed many.
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    first = Path(cert).read_text(encoding="ascii", errors="replace")
    try:
        context.load_verify_locations(
            cadata=first.partition(END_OF_CERTIFICATE)[0] + END_OF_CERTIFICATE
        )
    except ssl.SSLError as error:
        raise SettingsError(f"{flag}: {cert} holds no PEM certificate") from error
    return context


def scheme(context: ssl.SSLContext | None) -> str:
    """`https` for a server with a context, else `http`."""
    return "http" if context is None else "https"


def _require_readable(flag: str, file: str) -> None:
    try:
        with open(file, "rb") as stream:
            stream.read(1)
    except OSError as error:
        raise SettingsError(f"{flag}: cannot read {file}: {error.strerror}") from error


def _check_certificates(flag: str, file: str) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=file)
    except ssl.SSLError as error:
        raise SettingsError(f"{flag}: {file} holds no PEM certificate") from error


def _no_password() -> str:
    raise ValueError("the key is encrypted; give one without a password")


def _key_problem(error: ssl.SSLError, cert: str, key: str) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"{key} is not the key of the certificate in {cert}"
    return f"{key} holds no PEM private key"
