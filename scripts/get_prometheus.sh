#!/bin/sh
# Puts Debian's prometheus and promtool into a folder, without installing anything. usage: get_prometheus.sh FOLDER
# Exit status 3 if they cannot be had here.
set -eu
folder=$1
if [ -x "$folder/usr/bin/prometheus" ] && [ -x "$folder/usr/bin/promtool" ]; then
    exit 0
fi
if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
    echo "get_prometheus: apt-get and dpkg-deb are not here; put prometheus and promtool into $folder/usr/bin" >&2
    exit 3
fi
mkdir -p "$folder/download"
cd "$folder/download"
if ! apt-get download prometheus >/dev/null 2>&1; then
    # its lists may be old
    apt-get update >/dev/null 2>&1 || true
    apt-get download prometheus >/dev/null || exit 3
fi
dpkg-deb -x prometheus_*.deb ..
