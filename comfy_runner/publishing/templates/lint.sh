#!/bin/sh
# Checks the style of predict.py, and that its schema is current; --fix mends the style first.
set -eu
unset CDPATH
cd "$(dirname "$0")/.."

. script/environment
if [ "${1-}" = --fix ]; then
  ruff check --fix
  ruff format
else
  ruff check
  ruff format --check
fi
exec comfy-runner schema --check
