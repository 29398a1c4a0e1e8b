"""adbd's handling of keys: Android's binary form of an RSA public key, and the signature of a token.

Source: AOSP `libcrypto_utils/android_pubkey.cpp`; RFC 8017, 8.2.2 (PKCS #1 v1.5 with SHA-1).
"""

from __future__ import annotations

import base64
import binascii
import hmac
import struct
from dataclasses import dataclass

TOKEN_BYTES = 20
_MODULUS_BYTES = 256
_KEY = struct.Struct(f"<II{_MODULUS_BYTES}s{_MODULUS_BYTES}sI")
_SHA1_PREFIX = bytes.fromhex("3021300906052b0e03021a05000414")


@dataclass(frozen=True, slots=True)
class PublicKey:
    modulus: int
    exponent: int


def parse_public_key(text: bytes) -> PublicKey | None:
    """Parse a key in the form `BASE64 user@host`, as in ~/.android/adbkey.pub; None if it is not one."""
    try:
        words, _, modulus, _, exponent = _KEY.unpack(base64.b64decode(text.split(b"\0")[0].split()[0], validate=True))
    except (binascii.Error, IndexError, struct.error):
        return None
    if words != _MODULUS_BYTES // 4 or exponent not in (3, 65537):
        return None
    return PublicKey(int.from_bytes(modulus, "little"), exponent)


def is_signed(token: bytes, signature: bytes, key: PublicKey) -> bool:
    """Whether `signature` is the key's signature of the token, which takes the place of a SHA-1 digest."""
    if len(signature) != _MODULUS_BYTES:
        return False
    found = pow(int.from_bytes(signature, "big"), key.exponent, key.modulus).to_bytes(_MODULUS_BYTES, "big")
    digest = _SHA1_PREFIX + token
    wanted = b"\0\1" + b"\xff" * (_MODULUS_BYTES - len(digest) - 3) + b"\0" + digest
    return hmac.compare_digest(found, wanted)
