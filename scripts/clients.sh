#!/bin/sh
# Makes environments with the clients that people use, and runs tests/clients against a server of this package.
# usage: clients.sh SLIMSERVE_VENV CLIENTS_FOLDER VLLM_VENV [PYTEST_ARGS...]; PYTHON may name the interpreter.
# A package that cannot be installed is said, and its tests skip with the reason. vLLM's environment is that of
# `make interop`; without it the tests of its bench skip.
set -eu
slimserve=$1
clients=$2
vllm=$3
shift 3
requirements=tests/clients/requirements.txt

# usage: section NAME: the requirements of one environment, one a line
section() {
    awk -v name="# [$1]" '$0 == name { inside = 1; next } /^# \[/ { inside = 0 } inside && !/^#/ && NF' "$requirements"
}

# A set-up is fresh until the versions change.
is_fresh() {
    [ -e "$clients/$1/.slimserve-clients" ] &&
        [ -z "$(find "$requirements" requirements.lock -newer "$clients/$1/.slimserve-clients")" ]
}

report() {
    echo "clients: $1 cannot be installed here; its tests skip" >&2
}

# usage: make_environment NAME [REQUIREMENT...]: one by one, so that one failure is not all of them
make_environment() {
    name=$1
    shift
    is_fresh "$name" && return
    echo "clients: making $clients/$name (minutes the first time)"
    [ -x "$clients/$name/bin/pip" ] || "${PYTHON:-python3}" -m venv "$clients/$name"
    for requirement in "$@" $(section "$name"); do
        "$clients/$name/bin/pip" install --quiet --disable-pip-version-check --progress-bar off \
            --constraint "$constraints" "$requirement" </dev/null || report "$requirement"
    done
    touch "$clients/$name/.slimserve-clients"
}

make_node_modules() {
    is_fresh node && return
    mkdir -p "$clients/node"
    if command -v npm >/dev/null; then
        # shellcheck disable=SC2046 # one word per requirement
        npm install --silent --no-audit --no-fund --prefix "$clients/node" $(section node) || report "openai for node"
    else
        report "openai for node (there is no npm)"
    fi
    touch "$clients/node/.slimserve-clients"
}

mkdir -p "$clients"
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
# lm-eval and guidellm bring torch: the one that slimserve has, and not gigabytes of another.
grep -E '^(torch|transformers|tokenizers)==' requirements.lock > "$constraints"
make_environment openai-3 pytest pytest-asyncio pytest-timeout psutil httpx
make_environment openai-2 pytest pytest-asyncio pytest-timeout psutil httpx
make_environment harness
make_environment aiperf
make_node_modules

SLIMSERVE_PYTHON=$(cd "$slimserve" && pwd)/bin/python
SLIMSERVE_CLIENTS=$(cd "$clients" && pwd)
# litellm would fetch a list of prices when it is imported
LITELLM_LOCAL_MODEL_COST_MAP=True
export SLIMSERVE_PYTHON SLIMSERVE_CLIENTS LITELLM_LOCAL_MODEL_COST_MAP
if [ -x "$vllm/bin/python" ]; then
    VLLM_PYTHON=$(cd "$vllm" && pwd)/bin/python
    export VLLM_PYTHON
fi
# usage: drive ENVIRONMENT [PYTEST_ARGS...]; what clients warn of is theirs: some leave sockets open at the end
drive() {
    environment=$1
    shift
    "$clients/$environment/bin/python" -m pytest -q -W ignore "$@"
}

drive openai-3 tests/clients "$@"
# the other major version of openai, and what needs it
drive openai-2 tests/clients/test_openai_python.py tests/clients/test_langchain.py \
    tests/clients/test_instructor.py tests/clients/test_litellm.py "$@"
