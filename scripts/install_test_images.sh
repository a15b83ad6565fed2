# Install the drawings and photographs of Tux Paint from the Debian package if possible. A test uses them as images.
set -eu
[ -e /usr/share/tuxpaint/stamps/animals ] && exit 0
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  apt-get install -y -qq --no-install-recommends tuxpaint-stamps-default >/dev/null 2>&1 ||
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends tuxpaint-stamps-default >/dev/null; } ||
    echo "headstart: no Debian package tuxpaint-stamps-default; the test that uses it is skipped" >&2
fi
