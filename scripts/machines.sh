# Install Debian's SLURM and OpenSSH where that is possible: tests run a controller, nodes and a server of their own.
set -eu
command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v sbatch >/dev/null && \
  [ -e /usr/sbin/sshd ] && exit 0
packages="slurmctld slurmd slurm-client openssh-server"
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  # shellcheck disable=SC2086
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null 2>&1 ||
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages \
      >/dev/null 2>&1; } ||
    echo "headstart: Debian has no $packages here; the tests that need them are skipped" >&2
fi
