# Read by the other scripts: the environment that they run in, which script/bootstrap makes.
# COMFY_RUNNER_VENV names another one to use.
if [ -n "${COMFY_RUNNER_VENV-}" ]; then
  PYTHONPATH=$PWD # this project's comfy_runner, not the one that is installed there
  export PYTHONPATH
else
  script/bootstrap --quiet
  COMFY_RUNNER_VENV=$PWD/.venv
fi
PATH=$COMFY_RUNNER_VENV/bin:$PATH
export PATH%{packs}
