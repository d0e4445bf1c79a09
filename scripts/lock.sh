#!/bin/sh
# Prints every installed version as pip constraints. usage: lock.sh VENV
# A local version such as torch 2.13.0+cpu loses its suffix, so that the same lock admits a CUDA build.
set -eu
echo "# Exact versions of a full development environment, used as pip constraints. Written by: make lock"
"$1/bin/pip" freeze --exclude-editable --disable-pip-version-check | sed 's/+cpu$//; s/+cu[0-9]*$//' | grep -v '^hadolint'
