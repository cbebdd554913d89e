# The clients that the tests run, pinned. Sourced by run.sh.
NODE_VERSION=22.23.3
CLAUDE_CODE_VERSION=2.1.330
INSPECTOR_VERSION=2.12.0
PYTHON_SDK_VERSION=2.3.0
