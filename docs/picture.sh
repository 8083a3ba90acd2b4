#!/usr/bin/env bash
# A picture of a report, made by a real browser. usage: picture.sh REPORT.html PICTURE.png
set -euo pipefail
report=$(realpath "${1:?usage: picture.sh REPORT.html PICTURE.png}")
picture=$(realpath -m "${2:?usage: picture.sh REPORT.html PICTURE.png}")
profile=$(mktemp -d)
trap 'rm -rf "$profile"' EXIT
"${CHROMIUM:-chromium}" --headless --no-sandbox --disable-gpu --no-first-run --hide-scrollbars \
    --disable-background-networking --disable-component-update --disable-sync --user-data-dir="$profile" \
    --force-device-scale-factor=1 --window-size="${SIZE:-1200,1500}" --screenshot="$picture" "file://$report"
