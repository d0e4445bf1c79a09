#!/bin/sh
# Makes .venv and installs slimserve into it, at the versions of requirements.lock.
# usage: setup.sh VENV EXTRAS, where EXTRAS is empty or like "[dev]"; PYTHON may name the interpreter.
set -eu
venv=$1
extras=$2

find_python() {
    for candidate in "${PYTHON:-python3}" python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    echo "slimserve needs Python 3.11 or newer; install one, or name it: make PYTHON=/path/to/python3" >&2
    exit 1
}

if [ ! -x "$venv/bin/pip" ]; then
    python=$(find_python)
    echo "setup: making $venv with $("$python" --version)"
    if ! "$python" -m venv "$venv"; then
        rm -rf "$venv"
        echo "setup: '$python -m venv' failed; on Debian and Ubuntu install it: apt-get install python3-venv" >&2
        exit 1
    fi
fi

echo "setup: installing slimserve$extras and its dependencies (torch is the large one; minutes the first time)"
# The optional progress bar of pip writes thousands of lines into a log that is no terminal.
[ -t 1 ] && progress=on || progress=off
"$venv/bin/pip" install --quiet --disable-pip-version-check --progress-bar "$progress" \
    --constraint requirements.lock --editable ".$extras"
