#!/usr/bin/env bash
# What `make test-slurm` needs, on Debian: Slurm's daemons, munge, and namespaces. The tests start a Slurm of their own, so
# no service is to start at the installation.
set -euo pipefail
policy=/usr/sbin/policy-rc.d
declare -A package=([slurmctld]=slurmctld [slurmd]=slurmd [sbatch]=slurm-client [munged]=munge [ip]=iproute2 [pgrep]=procps)
missing=()
for command in "${!package[@]}"; do
  command -v "$command" >/dev/null || missing+=("${package[$command]}")
done
((${#missing[@]})) || exit 0
if [[ ! -e $policy ]]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
