"""Says where a secret is that should be nowhere: absent.py KEY-FILE PATH.. (exit code 1 if anywhere)"""

import sys

sys.dont_write_bytecode = True
from forms import files, forms, search  # noqa: E402


def main() -> int:
    with open(sys.argv[1], "rb") as file:
        patterns = forms(file.read().strip())
    found, count, total = [], 0, 0
    for place in sys.argv[2:]:
        before = count
        for path, data in files(place):
            count, total = count + 1, total + len(data)
            found += [f"{path}: {form}" for form in search(patterns, data, path)]
        if count == before:
            found.append(f"{place}: nothing there to search")
    print(f"searched {count} files ({total} bytes) for {len(patterns)} forms of the key")
    for one in found:
        print("found:", one)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
