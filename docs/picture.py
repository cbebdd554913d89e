#!/usr/bin/env python3
"""Makes docs/demo.svg from a real run: CLICOLOR_FORCE=1 claviger demo | docs/picture.py > docs/demo.svg"""

import html
import re
import sys

COLOURS = {"1": "font-weight:bold", "2": "fill:#8b949e", "1;31": "fill:#ff7b72;font-weight:bold", "1;32": "fill:#7ee787;font-weight:bold", "32": "fill:#7ee787", "33": "fill:#e3b341"}
WIDTH, LINE, CHARACTER = 110, 18, 8.43


def spans(line):
    """Cuts a line at its colour codes and at the picture's width."""
    style, column = "", 0
    for part in re.split(r"(\x1b\[[0-9;]*m)", line):
        code = re.fullmatch(r"\x1b\[([0-9;]*)m", part)
        if code:
            style = COLOURS.get(code.group(1), "")
            continue
        text = part[: max(0, WIDTH - column)]
        if text:
            yield column, style, text
        column += len(part)


def main():
    lines = sys.stdin.read().rstrip("\n").split("\n")
    height, width = LINE * (len(lines) + 2) + 20, round(WIDTH * CHARACTER) + 32
    print(f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">')
    print("<title>claviger demo: the timeline of one session and the proof</title>")
    print(f'<rect width="{width}" height="{height}" rx="8" fill="#0d1117"/>')
    print('<g font-family="ui-monospace,SFMono-Regular,Menlo,Consolas,monospace" font-size="14" fill="#e6edf3" xml:space="preserve">')
    for number, line in enumerate(["\x1b[2m$ claviger demo\x1b[0m", ""] + lines):
        for column, style, text in spans(line):
            x, y = 16 + column * CHARACTER, 28 + number * LINE
            print(f'<text x="{x:.1f}" y="{y}" textLength="{len(text) * CHARACTER:.1f}" style="{style}">{html.escape(text)}</text>')
    print("</g>\n</svg>")


main()
