"""TLS: what is wrong with an operator's files, whom a call trusts, and one record a token."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from starlette.types import Receive, Scope, Send
from support.apps import serving
from support.certificates import Certificate, make_certificate

from kodolly.errors import SettingsError
from kodolly.http.client import new_client
from kodolly.http.tls import client_context, pinned_context, scheme, server_context
from kodolly.http.upstream import Pool, Unreachable

APPLICATION_DATA = 23  # the type of a TLS record


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


def test_without_files_a_server_speaks_plain_http() -> None:
    """Nothing named, or named empty as an environment file does: no TLS."""
    assert server_context(None, None) is None
    assert server_context("", "") is None
    assert scheme(None) == "http"


def test_what_is_wrong_with_the_files_is_told_by_flag_and_file(
    files: Certificate, tmp_path: Path
) -> None:
    """One missing, one that is not there, one that is something else, keys of others or encrypted."""
    other = make_certificate(tmp_path / "other")
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("no certificate\n")
    secret = tmp_path / "secret.pem"
    secret.write_bytes(
        load_pem_private_key(files.key.read_bytes(), None).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")
        )
    )
    cert, key, gone = str(files.cert), str(files.key), str(tmp_path / "gone.pem")
    cases = [
        (cert, None, "--tls-cert needs --tls-key"),
        (None, key, "--tls-key needs --tls-cert"),
        (gone, key, f"--tls-cert: cannot read {gone}: No such file"),
        (cert, gone, f"--tls-key: cannot read {gone}: No such file"),
        (str(tmp_path), key, f"--tls-cert: cannot read {tmp_path}: Is a directory"),
        (str(nonsense), key, f"--tls-cert: {nonsense} holds no PEM certificate"),
        (cert, str(nonsense), f"--tls-key: {nonsense} holds no PEM private key"),
        (cert, cert, f"--tls-key: {cert} holds no PEM private key"),
        (cert, str(other.key), f"--tls-key: {other.key} is not the key of the certificate in"),
        (cert, str(secret), f"--tls-key: {secret}: the key is encrypted"),
    ]
    for given_cert, given_key, message in cases:
        with pytest.raises(SettingsError) as caught:
            server_context(given_cert, given_key)
        assert message in str(caught.value)


def test_an_authority_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """It is never taken for "trust the machine's own"."""
    with pytest.raises(SettingsError, match=r"--tls-ca: cannot read .*gone\.pem"):
        client_context(str(tmp_path / "gone.pem"))
    (tmp_path / "nonsense.pem").write_text("nothing")
    with pytest.raises(SettingsError, match=r"--tls-ca: .*nonsense\.pem holds no PEM certificate"):
        client_context(str(tmp_path / "nonsense.pem"))


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that says hello in JSON."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b'"hello"'})


@asynccontextmanager
async def secure(files: Certificate) -> AsyncIterator[str]:
    async with serving(hello, tls=server_context(str(files.cert), str(files.key))) as url:
        yield url


async def test_calls_trust_the_authority_that_is_named_and_no_stranger(files: Certificate) -> None:
    """Pool and client: with --tls-ca the answer comes, without it the certificate is refused."""
    async with secure(files) as url:
        assert url.startswith("https://")
        trust = client_context(str(files.ca))
        connection = await Pool(5, trust).post(url, {}, b"{}")
        assert (connection.status, await connection.read()) == (200, b'"hello"')
        connection.close()
        async with new_client(trust) as client:
            assert (await client.get(url)).json() == "hello"
        with pytest.raises(Unreachable, match="certificate verify failed"):
            await Pool(5).post(url, {}, b"{}")


async def test_a_pinned_certificate_is_good_by_any_name_and_no_other_is(tmp_path: Path) -> None:
    """A loopback address is not in the world's certificate; the same authority's others are refused."""
    authority = trustme.CA().create_child_ca()  # its certificate is in the file with ours
    ours = make_certificate(tmp_path / "ours", "chat.example", authority=authority)
    theirs = make_certificate(tmp_path / "theirs", "127.0.0.1", authority=authority)
    async with secure(ours) as url, new_client(pinned_context(str(ours.cert))) as client:
        assert (await client.get(url)).json() == "hello"
    async with secure(theirs) as url:
        with pytest.raises(Unreachable, match="certificate verify failed"):
            await Pool(5, pinned_context(str(ours.cert))).post(url, {}, b"{}")


async def test_a_token_is_one_write_over_tls_too(files: Certificate) -> None:
    """Head and first event share a record, and every further event is one record."""
    tokens = 20

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        write = None
        for number in range(tokens):
            data = b"data: %d\n\n" % number
            write = scope["extensions"]["kodolly.chunk"]
            if not write(data):
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await asyncio.sleep(0.01)
        await send({"type": "http.response.body", "body": b""})

    async with serving(app, tls=server_context(str(files.cert), str(files.key))) as url:
        records = await asyncio.to_thread(records_of_answer, url, str(files.ca))

    assert len(records) == tokens + 1  # the last one ends the body
    assert records[0].startswith(b"HTTP/1.1 200")
    assert records[0].endswith(b"data: 0\n\n\r\n")
    assert records[5] == b"9\r\ndata: 5\n\n\r\n"


def records_of_answer(url: str, ca: str) -> list[bytes]:
    """The plain text of each TLS record of the answer to a GET: every record is one write."""
    import socket

    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context(ca).wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    raw = b""
    records: list[bytes] = []
    with closing(socket.create_connection(("127.0.0.1", urlsplit(url).port or 0), 10)) as sock:

        def one_record() -> int:
            """Takes one record off the wire; its type."""
            nonlocal raw
            while len(raw) < 5 or len(raw) < 5 + int.from_bytes(raw[3:5], "big"):
                raw += sock.recv(65536)
            end = 5 + int.from_bytes(raw[3:5], "big")
            record, raw = raw[:end], raw[end:]
            incoming.write(record)
            return record[0]

        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                one_record()
        tls.write(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        sock.sendall(outgoing.read())
        while not records or not records[-1].endswith(b"0\r\n\r\n"):
            if one_record() != APPLICATION_DATA:
                continue
            try:
                records.append(tls.read(65536))
            except ssl.SSLWantReadError:  # a session ticket
                continue
    return records
