"""A reader who believes nothing: an own marker as the demo's key, an own search of what it left.

sceptic.py PROGRAM DIRECTORY: runs `PROGRAM demo --secret-from-stdin --keep DIRECTORY --json` with a
fresh marker, watches every process's arguments and environment meanwhile, then searches every byte
of the directory. The marker, in whatever form, may be in the upstream's own record and nowhere else.
"""

import json
import os
import secrets
import subprocess
import sys
import threading
import time

# A clean tree stays clean.
sys.dont_write_bytecode = True
from forms import files, forms, search  # noqa: E402

ALLOWED = os.path.join("upstream", "requests.jsonl")


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
        problems += [f"{name}: {form}" for form in search(patterns, data)]
    if done.returncode == 0 and json.loads(done.stdout)["ok"] is not True:
        problems.append("the demo says that something did not hold")
    count = total = 0
    recorded = False
    for path, data in files(directory):
        relative = os.path.relpath(path, directory)
        count, total = count + 1, total + len(data)
        if relative == ALLOWED:
            recorded = marker in data
        else:
            problems += [f"{relative}: {form}" for form in search(patterns, data, relative)]
    if not recorded:
        problems.append(f"{ALLOWED} does not show that the upstream got the marker")
    if not os.path.isdir(os.path.join(directory, "audit")):
        problems.append("no audit/ in the kept directory")
    print(f"searched {count} files ({total} bytes) and {counts[0]} reads of /proc for {len(patterns)} forms of the marker")
    for problem in problems:
        print("found:", problem)
    return 1 if problems or count < 5 or counts[0] == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
