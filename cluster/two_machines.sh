#!/usr/bin/env bash
# One Ray cluster of two machines, or of more, without any other software.
#
#   cluster/two_machines.sh head   HOME HEAD_IP [ray start options]   on the first machine
#   cluster/two_machines.sh worker HOME HEAD_IP [ray start options]   on every other one
#   cluster/two_machines.sh submit HOME COMMAND...                    on the first machine, any terminal
#
# HOME is a folder that all machines see at the same path; it becomes GLM_DIST_HOME. Code and packages
# must be the same everywhere: `make setup` in a clone on each, or one clone on the shared folder.
# `head` and `worker` stay in the foreground, and Ctrl-C ends what they started and nothing else.
# Options go to `ray start`, such as --num-cpus=16 or --num-gpus=1. A machine with several network
# interfaces needs to be told which one the workers use: GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME.
#
# Token authentication is on, with the token in HOME/ray_token, which only you can read. It is sent in
# the clear, so use a network that you trust. The dashboard listens on loopback of the first machine;
# to see it from elsewhere: ssh -L 8265:127.0.0.1:8265 FIRST_MACHINE
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
port=${RAY_PORT:-6379}
dashboard_port=${RAY_DASHBOARD_PORT:-8265}

fail() {
  echo "two_machines.sh: $*" >&2
  exit 2
}

usage() {
  sed -n '4,6s/^# *//p' "${BASH_SOURCE[0]}" >&2
  exit 2
}

make_token() {
  [[ -s $RAY_AUTH_TOKEN_PATH ]] && return
  local fresh
  fresh=$(umask 077 && mktemp "$GLM_DIST_HOME/.ray_token.XXXXXX")
  od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$fresh"
  mv "$fresh" "$RAY_AUTH_TOKEN_PATH"
}

start_head() {
  [[ $# -ge 1 ]] || usage
  local head_ip=$1
  shift
  make_token
  echo "on every other machine: cluster/two_machines.sh worker $GLM_DIST_HOME $head_ip"
  echo "then, here:             cluster/two_machines.sh submit $GLM_DIST_HOME python jobs/pretrain.py"
  exec ray start --head --block --node-ip-address="$head_ip" --port="$port" \
    --dashboard-host=127.0.0.1 --dashboard-port="$dashboard_port" "$@"
}

start_worker() {
  [[ $# -ge 1 ]] || usage
  local head_ip=$1
  shift
  [[ -r $RAY_AUTH_TOKEN_PATH ]] \
    || fail "$RAY_AUTH_TOKEN_PATH is not to be read on $(hostname): is $GLM_DIST_HOME the same" \
      "folder as on the head, mounted at the same path, and has the head been started?"
  exec ray start --block --address="$head_ip:$port" "$@"
}

submit() {
  [[ $# -ge 1 ]] || usage
  [[ -r $RAY_AUTH_TOKEN_PATH ]] || fail "$RAY_AUTH_TOKEN_PATH is missing: start the head first"
  cd "$root"
  exec ray job submit --address="http://127.0.0.1:$dashboard_port" --working-dir . -- "$@"
}

[[ $# -ge 2 ]] || usage
role=$1
[[ -d $2 ]] || fail "$2 is no folder on $(hostname); mount the shared folder, or make it"
GLM_DIST_HOME=$(cd "$2" && pwd)
shift 2
[[ -x $root/.venv/bin/ray ]] && PATH=$root/.venv/bin:$PATH
command -v ray > /dev/null || fail "no ray in $root/.venv or on PATH; run 'make setup' in $root"

# Nodes hand their environment to the workers and jobs that they start.
unset RAY_ADDRESS RAY_AUTH_TOKEN
export PATH GLM_DIST_HOME RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$GLM_DIST_HOME/ray_token
export RAY_USAGE_STATS_ENABLED=0

case $role in
  head) start_head "$@" ;;
  worker) start_worker "$@" ;;
  submit) submit "$@" ;;
  *) usage ;;
esac
