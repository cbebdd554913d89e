"""The forms that a secret may take in what others wrote down."""

import base64
import os
import urllib.parse
import zlib


def forms(secret: bytes) -> dict[str, bytes]:
    """The secret in every form that a careless program might leave."""
    text = secret.decode()
    found = {
        "raw": secret,
        "reversed": secret[::-1],
        "hex": secret.hex().encode(),
        "HEX": secret.hex().upper().encode(),
        "percent": "".join(f"%{byte:02x}" for byte in secret).encode(),
        "PERCENT": "".join(f"%{byte:02X}" for byte in secret).encode(),
        "quoted": urllib.parse.quote(text, safe="").encode(),
        "json escapes": "".join(f"\\u{byte:04x}" for byte in secret).encode(),
        "utf-16": text.encode("utf-16-le"),
        "base32": base64.b32encode(secret).rstrip(b"=")[:-1],
        "decimal": ",".join(str(byte) for byte in secret).encode(),
        "half": secret[: len(secret) // 2 + 4],
        "other half": secret[len(secret) // 2 - 4 :],
    }
    # Base64 depends on where the secret starts in its group of three bytes: the letters that it
    # decides alone are the same whatever stands around it.
    for shift in range(3):
        padded = b"\0" * shift + secret
        piece = base64.b64encode(padded)[0 if shift == 0 else 4 : len(padded) // 3 * 4]
        found[f"base64 +{shift}"] = piece
        found[f"url base64 +{shift}"] = piece.translate(bytes.maketrans(b"+/", b"-_"))
        found[f"base64 of base64 +{shift}"] = base64.b64encode(piece)[:-4]
    return found


def inflated(data: bytes) -> bytes:
    """What is inside gzip streams, so that compression hides nothing."""
    out, start = b"", 0
    while (start := data.find(b"\x1f\x8b\x08", start)) >= 0:
        try:
            out += zlib.decompressobj(31).decompress(data[start:], 1 << 24)
        except zlib.error:
            pass
        start += 3
    return out


def files(path: str):
    """Every regular file at or under a path, with its content."""
    if os.path.isfile(path):
        with open(path, "rb") as file:
            yield path, file.read()
    for folder, _, names in os.walk(path):
        for name in names:
            inside = os.path.join(folder, name)
            if os.path.isfile(inside) and not os.path.islink(inside):
                with open(inside, "rb") as file:
                    yield inside, file.read()


def search(patterns: dict[str, bytes], data: bytes, name: str = "") -> list[str]:
    """Which forms are in the data, compressed or not, or in its name."""
    opened = inflated(data)
    return [form for form, pattern in patterns.items() if pattern in data or pattern in opened or pattern in name.encode()]
