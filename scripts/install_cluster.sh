# Install what the tests of `make cluster` need in addition to `make backends`: rclone for an S3 server and, on Debian as
# root, SLURM and OpenSSH. The tests start their own SLURM controller, SLURM nodes and SSH server.
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
    echo "headstart: cannot install $*; the tests that need them are skipped" >&2
fi
