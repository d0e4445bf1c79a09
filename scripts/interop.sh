#!/bin/sh
# Makes environments with the libraries that write and read the same files as slimserve, and runs tests/interop.
# usage: interop.sh VENV LLMCOMPRESSOR_VENV VLLM_VENV [PYTEST_ARGS...]; PYTHON may name the interpreter.
# A library that cannot be installed is said, and its tests skip with the reason.
set -eu
venv=$1
llmcompressor=$2
vllm=$3
shift 3
versions=tests/interop

install() {
    environment=$1
    shift
    "$environment/bin/pip" install --quiet --disable-pip-version-check --progress-bar off "$@" </dev/null
}

# A set-up is fresh until the versions change.
is_fresh() {
    [ -e "$1/.slimserve-interop" ] &&
        [ -z "$(find pyproject.toml requirements.lock "$2" -newer "$1/.slimserve-interop")" ]
}

make_environment() {
    echo "interop: making $1 by $2 ($3, minutes the first time)"
    rm -f "$1/.slimserve-interop"
    [ -x "$1/bin/pip" ] || "${PYTHON:-python3}" -m venv "$1"
}

# usage: make_alone VENV REQUIREMENTS SIZE; fails if the requirements cannot be installed
make_alone() {
    is_fresh "$1" "$2" && return
    make_environment "$1" "$2" "$3"
    install "$1" --requirement "$2" || { echo "interop: $2 cannot be installed here; its tests skip" >&2; return 1; }
    # PyPI's torchvision and torchaudio do not import beside a CPU build of torch; nothing here needs them.
    "$1/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec 2>/dev/null
    touch "$1/.slimserve-interop"
}

if ! is_fresh "$venv" "$versions/requirements.txt"; then
    make_environment "$venv" "$versions/requirements.txt" "1.7 GB"
    constraints=$(mktemp)
    trap 'rm -f "$constraints"' EXIT
    grep -v '^numpy==' requirements.lock > "$constraints"
    install "$venv" --constraint "$constraints" torch setuptools wheel --editable .
    # One by one, so that one failure is not all of them. No build isolation: the build of gptqmodel asks for the
    # installed torch. No kernels: for them it would ask for a CUDA compiler.
    grep -v '^#' "$versions/requirements.txt" | while read -r requirement; do
        BUILD_CUDA_EXT=0 install "$venv" --constraint "$constraints" --no-build-isolation "$requirement" ||
            echo "interop: $requirement cannot be installed here; its tests skip" >&2
    done
    touch "$venv/.slimserve-interop"
fi
if make_alone "$llmcompressor" "$versions/requirements-llmcompressor.txt" "1.5 GB"; then
    LLMCOMPRESSOR_PYTHON=$(cd "$llmcompressor" && pwd)/bin/python
    export LLMCOMPRESSOR_PYTHON
fi
if make_alone "$vllm" "$versions/requirements-vllm.txt" "3.5 GB"; then
    VLLM_PYTHON=$(cd "$vllm" && pwd)/bin/python
    export VLLM_PYTHON
fi
"$venv/bin/python" -m pytest -q "$versions" "$@"
