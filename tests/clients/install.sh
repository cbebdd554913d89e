#!/usr/bin/env bash
# Installs the pinned clients outside the tree, once: install.sh DIRECTORY
set -euo pipefail
cd "$(dirname "$0")"
. ./versions.sh
place=$1
stamp="$NODE_VERSION $CLAUDE_CODE_VERSION $INSPECTOR_VERSION $PYTHON_SDK_VERSION"
if [ "$(cat "$place/stamp" 2>/dev/null)" = "$stamp" ]; then
    exit 0
fi
rm -rf "$place"
mkdir -p "$place/node" "$place/npm"
# Both clients want a newer Node than Debian's: with an older one npm silently picks old versions.
npm install --prefix "$place/node" --no-audit --no-fund --loglevel=error "node@$NODE_VERSION"
PATH=$place/node/node_modules/.bin:$PATH
test "$(node --version)" = "v$NODE_VERSION"
npm install --prefix "$place/npm" --no-audit --no-fund --loglevel=error \
    "@anthropic-ai/claude-code@$CLAUDE_CODE_VERSION" "@modelcontextprotocol/inspector@$INSPECTOR_VERSION"
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check "mcp==$PYTHON_SDK_VERSION"
echo "$stamp" >"$place/stamp"
