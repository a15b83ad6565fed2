# What tests of `make cluster` need besides `make backends`: rclone for its server of S3, and, where Debian and root are
# there, SLURM and OpenSSH, of which the tests start a controller, nodes and a server of their own.
set -eu
bin=.venv/bin
[ -d "$bin" ] || bin=.venv/Scripts
"$bin/uv" pip install --quiet --python "$bin/python" --require-hashes -r tests/servers.txt
command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v sbatch >/dev/null && \
  [ -e /usr/sbin/sshd ] && exit 0
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  export DEBIAN_FRONTEND=noninteractive
  set -- slurmctld slurmd slurm-client openssh-server
  apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1 ||
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1; } ||
    echo "headstart: Debian has no $* here; the tests that need them are skipped" >&2
fi
