#!/bin/sh
# Serves the model with Cog's own server and makes one prediction, on the CPU where there is no GPU.
# Arguments, such as -i NAME=VALUE, go to comfy-runner predict in the place of the example values.
set -eu
unset CDPATH
cd "$(dirname "$0")/.."

. script/environment
%{example}# begin: yours
# end: yours
exec comfy-runner predict --project . --out output "$@"
