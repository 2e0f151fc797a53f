#!/bin/sh
# Builds, tests and publishes the model with cog-safe-push; arguments go to it. Needs Docker, cog
# after `cog login`, cog-safe-push, and REPLICATE_API_TOKEN. The tests, and which model it is, stand
# in cog-safe-push-configs/default.yaml.
set -eu
unset CDPATH
cd "$(dirname "$0")/.."

# cog.yaml pins one half of Cog's runtime; this pins its other half.
COGLET_WHEEL=${COGLET_WHEEL:-pypi:%{cog}}
export COGLET_WHEEL%{packs}
exec cog-safe-push --config cog-safe-push-configs/default.yaml "$@"
