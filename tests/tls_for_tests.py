"""A certificate authority, and a TLS end in front of a Redis whose program has none."""

import datetime as dt
import ipaddress
import selectors
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Authority:
    """PEM files: what clients trust, and key and certificate of a server it signed."""

    ca: Path
    server: Path


def make_authority(folder: Path, *, host: str = "127.0.0.1") -> Authority:
    """Make an authority and a certificate for an address, in a folder of their own."""
    folder.mkdir(exist_ok=True)
    ca_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca_name, server_name = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("test CA", "redis")
    )
    ca = (
        _certificate(ca_name, ca_name, ca_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
    server = (
        _certificate(server_name, ca_name, server_key)
        .add_extension(address, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    secret = server_key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    files = Authority(folder / "ca.pem", folder / "server.pem")
    files.ca.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    files.server.write_bytes(secret + server.public_bytes(serialization.Encoding.PEM))
    return files


def _certificate(subject: x509.Name, issuer: x509.Name, key: Any) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(dt.datetime(2020, 1, 1))
        .not_valid_after(dt.datetime(2120, 1, 1))
    )


@contextmanager
def tls_in_front_of(redis_url: str, certificate: Path) -> Iterator[int]:
    """Accept TLS and pass everything on to the server; gives the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    port = int(redis_url.split(":")[2].split("/")[0])
    listener = socket.create_server(("127.0.0.1", 0))

    def copy(accepted: socket.socket) -> None:
        try:
            outside = context.wrap_socket(accepted, server_side=True)
        except (ssl.SSLError, OSError):
            return
        inside = socket.create_connection(("127.0.0.1", port))
        with outside, inside, selectors.DefaultSelector() as selector, suppress(OSError):
            selector.register(outside, selectors.EVENT_READ, inside)
            selector.register(inside, selectors.EVENT_READ, outside)
            while True:
                for ready, _ in selector.select():
                    received = ready.fileobj.recv(1 << 14)  # type: ignore[union-attr]
                    if not received:
                        return
                    ready.data.sendall(received)
                    while outside.pending():
                        inside.sendall(outside.recv(1 << 14))

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=copy, args=listener.accept()[:1], daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
