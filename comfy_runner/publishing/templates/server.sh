#!/bin/sh
# Serves predictions over HTTP; arguments go to comfy-runner serve.
set -eu
unset CDPATH
cd "$(dirname "$0")/.."

. script/environment
exec comfy-runner serve --project . "$@"
