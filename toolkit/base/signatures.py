"""Signs with the private Ed25519 key in a file, and checks signatures with the public key in a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from toolkit.base.errors import UsageError
from toolkit.base.strict_json import open_regular

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

Signer = Callable[[bytes], bytes]
"""Returns the signature of a message."""
Truster = Callable[[bytes, bytes], bool]
"""Returns whether the key made a signature (first argument) of a message (second)."""

SIGNATURE_DIGITS = 128
_MAX_KEY_BYTES = 64 * 1024
_MAKE = "make one with openssl genpkey -algorithm ed25519 -out key.pem"
_PUBLISH = "write it with openssl pkey -in key.pem -pubout -out public.pem"


def read_signer(path: Path) -> Signer:
    """The function that signs with a private key in PEM or OpenSSH's format; UsageError for any other file."""
    return _private_key(path).sign


def read_truster(path: Path) -> Truster:
    """The function that checks with a public key in PEM or OpenSSH's format; UsageError for any other file."""
    key = _public_key(path)

    def made(signature: bytes, message: bytes) -> bool:
        from cryptography.exceptions import InvalidSignature

        try:
            key.verify(signature, message)
        except InvalidSignature:
            return False
        return True

    return made


def _private_key(path: Path) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    data = _read(path)
    openssh = data.startswith(b"-----BEGIN OPENSSH")
    load = serialization.load_ssh_private_key if openssh else serialization.load_pem_private_key
    try:
        key = load(data, password=None)
    except TypeError:
        _refuse(path, "a key with a passphrase", "one without", _MAKE)
    except Exception:  # the library raises errors of many kinds for bytes that are not a key
        _refuse(path, "not a private key", "an Ed25519 key in PEM or OpenSSH's format", _MAKE)
    if not isinstance(key, Ed25519PrivateKey):
        _refuse(path, "a private key of another kind", "an Ed25519 key", _MAKE)
    return key


def _public_key(path: Path) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    data = _read(path)
    pem = data.lstrip().startswith(b"-----BEGIN")
    try:
        key = (serialization.load_pem_public_key if pem else serialization.load_ssh_public_key)(data)
    except Exception:
        found = "a private key" if b"PRIVATE KEY" in data else "not a public key"
        _refuse(path, found, "an Ed25519 public key in PEM or OpenSSH's format", _PUBLISH)
    if not isinstance(key, Ed25519PublicKey):
        _refuse(path, "a public key of another kind", "an Ed25519 key", _PUBLISH)
    return key


def _read(path: Path) -> bytes:
    with open(open_regular(path, UsageError), "rb") as file:
        return file.read(_MAX_KEY_BYTES)


def _refuse(path: Path, found: str, wanted: str, remedy: str) -> NoReturn:
    raise UsageError(file=path, found=found, wanted=wanted, remedy=remedy)
