"""A reader who believes nothing: an own marker as the demo's key, an own search of what it left.

sceptic.py PROGRAM DIRECTORY: runs `PROGRAM demo --secret-from-stdin --keep DIRECTORY --json` with a
fresh marker, watches every process's arguments and environment meanwhile, then searches every byte
of the directory. The marker, in whatever form, may be in the upstream's own record and nowhere else.
"""

import base64
import json
import os
import secrets
import subprocess
import sys
import threading
import time
import urllib.parse
import zlib

ALLOWED = os.path.join("upstream", "requests.jsonl")


def forms(marker: bytes) -> dict[str, bytes]:
    """The marker in every form that a careless program might leave."""
    text = marker.decode()
    found = {
        "raw": marker,
        "reversed": marker[::-1],
        "hex": marker.hex().encode(),
        "HEX": marker.hex().upper().encode(),
        "percent": "".join(f"%{byte:02x}" for byte in marker).encode(),
        "PERCENT": "".join(f"%{byte:02X}" for byte in marker).encode(),
        "quoted": urllib.parse.quote(text, safe="").encode(),
        "json escapes": "".join(f"\\u{byte:04x}" for byte in marker).encode(),
        "utf-16": text.encode("utf-16-le"),
        "base32": base64.b32encode(marker).rstrip(b"=")[:-1],
        "decimal": ",".join(str(byte) for byte in marker).encode(),
        "half": marker[: len(marker) // 2 + 4],
        "other half": marker[len(marker) // 2 - 4 :],
    }
    # Base64 depends on where the marker starts in its group of three bytes: the letters that it
    # decides alone are the same whatever stands around it.
    for shift in range(3):
        padded = b"\0" * shift + marker
        whole = base64.b64encode(padded)
        first = 0 if shift == 0 else 4
        last = len(padded) // 3 * 4
        piece = whole[first:last]
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


def watch(patterns: dict[str, bytes], stop: threading.Event, seen: list[str], counts: list[int]) -> None:
    """Reads arguments and environment of every process that may be read, over and over."""
    while not stop.is_set():
        for pid in filter(str.isdigit, os.listdir("/proc")):
            for part in ("cmdline", "environ"):
                try:
                    with open(f"/proc/{pid}/{part}", "rb") as file:
                        data = file.read()
                except OSError:
                    continue
                counts[0] += 1
                seen.extend(f"/proc/{pid}/{part}: {name}" for name, form in patterns.items() if form in data)
        time.sleep(0.05)


def main() -> int:
    program, directory = sys.argv[1], sys.argv[2]
    # No two markers share a part, and none of it is a word.
    marker = ("sk-" + secrets.token_hex(8) + "+/~" + secrets.token_urlsafe(12)).encode()
    patterns = forms(marker)
    stop, seen, counts = threading.Event(), [], [0]
    watcher = threading.Thread(target=watch, args=(patterns, stop, seen, counts))
    watcher.start()
    try:
        done = subprocess.run(
            [program, "demo", "--secret-from-stdin", "--keep", directory, "--json"], input=marker, capture_output=True, timeout=150
        )
    finally:
        stop.set()
        watcher.join()
    problems = [f"process: {one}" for one in sorted(set(seen))]
    if done.returncode != 0:
        problems.append(f"exit code {done.returncode}: {done.stderr.decode(errors='replace')[-2000:]}")
    for name, data in (("stdout", done.stdout), ("stderr", done.stderr)):
        problems += [f"{name}: {form}" for form, pattern in patterns.items() if pattern in data]
    if done.returncode == 0 and json.loads(done.stdout)["ok"] is not True:
        problems.append("the demo says that something did not hold")
    files = total = 0
    recorded = False
    for folder, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(folder, name)
            relative = os.path.relpath(path, directory)
            if not os.path.isfile(path) or os.path.islink(path):
                continue
            with open(path, "rb") as file:
                data = file.read()
            files, total = files + 1, total + len(data)
            if relative == ALLOWED:
                recorded = marker in data
                continue
            # A name can leak as well as a content.
            for form, pattern in patterns.items():
                if pattern in data or pattern in inflated(data) or pattern in relative.encode():
                    problems.append(f"{relative}: {form}")
    if not recorded:
        problems.append(f"{ALLOWED} does not show that the upstream got the marker")
    if not os.path.isdir(os.path.join(directory, "audit")):
        problems.append("no audit/ in the kept directory")
    print(f"searched {files} files ({total} bytes) and {counts[0]} reads of /proc for {len(patterns)} forms of the marker")
    for problem in problems:
        print("found:", problem)
    return 1 if problems or files < 5 or counts[0] == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
