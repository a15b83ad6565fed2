# Install Debian's drawings and photographs of Tux Paint where that is possible: tests make a study of them.
set -eu
[ -e /usr/share/tuxpaint/stamps/animals ] && exit 0
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  apt-get install -y -qq --no-install-recommends tuxpaint-stamps-default >/dev/null 2>&1 ||
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends tuxpaint-stamps-default >/dev/null; } ||
    echo "headstart: Debian has no tuxpaint-stamps-default here; the test of a study of them is skipped" >&2
fi
