#!/bin/sh
# Prints the path of a Chromium for the tests of the page; installs Debian's if there is none and this is root.
# Exit status 3 if there is none to be had here.
set -eu
find_browser() {
    for name in chromium chromium-browser google-chrome; do
        if command -v "$name"; then
            return 0
        fi
    done
    return 1
}
find_browser && exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "get_chromium: no Chromium here; install one (Debian: apt-get install chromium)" >&2
    exit 3
fi
echo "get_chromium: installing Debian's chromium" >&2
apt-get update >/dev/null 2>&1 || true
DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends chromium >/dev/null 2>&1 || exit 3
find_browser || exit 3
