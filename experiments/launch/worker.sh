#!/usr/bin/env bash
# Runs on each TPU VM, out of the code that was sent there; pod.py calls it over ssh. What it finds it reports in one
# line, "@nuwaxl worker=K stage=S ok|failed: why", so that the worker can be named among many.
#
#   setup LABEL                        Python, a virtual environment, the package with its tpu extra
#   mount SOURCE TARGET                gs://bucket by gcsfuse, nfs://address/share by NFS
#   preflight GENERATION HOSTS DEVICES WORKDIR TOKEN SECONDS
#   start RUN GENERATION WORKDIR ARGS  the run, detached: it outlives the ssh session
#   status RUN | log RUN OFFSET | tail RUN LINES | stop RUN SECONDS
#   container GENERATION WORKDIR ARGS  the run in the foreground, for a container of GKE
set -u
SELF="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/$(basename "${BASH_SOURCE[0]}")"
CODE="$(cd "$(dirname "$SELF")/../.." && pwd)"
BASE="$HOME/nuwaxl"
PYTHON="$BASE/venv/bin/python"
PYTHON_VERSION=3.12
STAGE="$1"

worker() { # this VM's number, from whoever started it
  if [[ -n "${NUWAXL_WORKER:-${TPU_WORKER_ID:-}}" ]]; then
    echo "${NUWAXL_WORKER:-$TPU_WORKER_ID}"
  else
    curl -sf -m 5 -H 'Metadata-Flavor: Google' \
      http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number || echo unknown
  fi
}

report() { printf '@nuwaxl worker=%s stage=%s %s\n' "$(worker)" "$STAGE" "$*"; }

fail() {
  report "failed: $*"
  exit 3
}

quietly() { # runs a step into setup.log; its last line tells what went wrong
  "$@" >>"$BASE/setup.log" 2>&1 || fail "$1: $(tail -n 1 "$BASE/setup.log" | cut -c 1-300)"
}

setup() {
  local label="$1"
  mkdir -p "$BASE"
  if [[ "$(cat "$BASE/installed" 2>/dev/null)" != "$label" ]]; then
    # The images' own Python is 3.10, the package needs 3.11: uv brings one.
    quietly python3 -m pip install --quiet --user uv
    [[ -x "$PYTHON" ]] || quietly python3 -m uv venv --quiet --python "$PYTHON_VERSION" "$BASE/venv"
    quietly python3 -m uv pip install --quiet --python "$PYTHON" -e "$CODE[tpu]"
    echo "$label" >"$BASE/installed"
  fi
  report ok
}

install_gcsfuse() {
  local list=/etc/apt/sources.list.d/gcsfuse.list key=/usr/share/keyrings/cloud.google.asc
  curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null || return 1
  echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -c -s) main" |
    sudo tee "$list" >/dev/null || return 1
  install_package gcsfuse
}

install_package() { # waits for the updates that a new VM may be busy with
  sudo apt-get -o DPkg::Lock::Timeout=300 update -q && sudo apt-get -o DPkg::Lock::Timeout=300 install -q -y "$1"
}

mount_place() {
  local source="$1" target="$2" address
  mkdir -p "$BASE"
  if ! mountpoint -q "$target"; then
    quietly sudo mkdir -p "$target"
    case "$source" in
    gs://*)
      command -v gcsfuse >/dev/null || quietly install_gcsfuse
      quietly sudo chown "$(id -u):$(id -g)" "$target"
      # No cached metadata: what one worker has written, the others must see. Flat buckets refuse to rename folders
      # above the limit, and a checkpoint is committed by renaming its folder.
      quietly gcsfuse --implicit-dirs --rename-dir-limit=200000 --metadata-cache-ttl-secs=0 \
        --metadata-cache-negative-ttl-secs=0 "${source#gs://}" "$target"
      ;;
    nfs://*)
      address="${source#nfs://}"
      command -v mount.nfs >/dev/null || quietly install_package nfs-common
      quietly sudo mount -t nfs -o hard "${address%%/*}:/${address#*/}" "$target"
      mkdir -p "$target" 2>/dev/null && [[ -w "$target" ]] || quietly sudo chmod 1777 "$target"
      ;;
    *) fail "$source: neither gs:// nor nfs://" ;;
    esac
  fi
  report ok
}

environment() { # of preflight and run alike
  local generation="$1" workdir="$2" file="$CODE/experiments/launch/libtpu/$1.args"
  [[ -f "$file" ]] || fail "no $file"
  LIBTPU_INIT_ARGS="$(echo $(sed -e 's/#.*//' "$file") ${LIBTPU_INIT_ARGS:-})"
  export LIBTPU_INIT_ARGS PYTHONUNBUFFERED=1
  export JAX_COMPILATION_CACHE_DIR="$workdir/compilation_cache"
  ulimit -n "$(ulimit -H -n)"
  cd "$CODE" || fail "no $CODE"
}

preflight() {
  local generation="$1" hosts="$2" devices="$3" workdir="$4" token="$5" seconds="$6" code
  environment "$generation" "$workdir"
  NUWAXL_WORKER="$(worker)" timeout -k 5 "$seconds" "$PYTHON" "$CODE/experiments/launch/preflight.py" \
    --hosts="$hosts" --devices="$devices" --workdir="$workdir" --token="$token" --seconds="$seconds"
  code=$?
  if [[ $code == 124 || $code == 137 ]]; then
    STAGE=limit fail "not ready within $seconds s"
  elif [[ $code != 0 && $code != 3 ]]; then
    STAGE=crash fail "python ended with status $code; LIBTPU_INIT_ARGS=$LIBTPU_INIT_ARGS"
  fi
  exit $code
}

alive() { # its process, and not another one that got its number after a reboot
  [[ ! -f "$BASE/runs/$1/exit" ]] && grep -qsz -- "^$1\$" "/proc/$(cat "$BASE/runs/$1/pid" 2>/dev/null)/cmdline"
}

start() {
  local run="$1" other
  for other in "$BASE"/runs/*/; do
    other="$(basename "$other")"
    [[ "$other" != "*" ]] && alive "$other" && fail "run $other is still at work; stop it first"
  done
  mkdir -p "$BASE/runs/$run"
  # A session of its own, no terminal, no open files of ssh's: nothing is left that a lost connection could end.
  setsid nohup bash "$SELF" supervise "$@" </dev/null >>"$BASE/runs/$run/log" 2>&1 &
  echo $! >"$BASE/runs/$run/pid"
  report ok
}

supervise() { # the run, its exit status, and its log's copy beside the checkpoints
  local run="$1" generation="$2" workdir="$3" folder="$BASE/runs/$1" copy child code
  shift 3
  echo $$ >"$folder/pid"
  # When the VM goes down every process gets SIGTERM, the run too: passing it on would be its second, which ends it at
  # once, without a checkpoint. Caught rather than ignored, since a child inherits what is ignored.
  trap : TERM INT HUP
  environment "$generation" "$workdir"
  copy="$workdir/launch/$run-worker-$(worker).log"
  mkdir -p "$workdir/launch"
  "$PYTHON" -m nuwaxl_jax.main "$@" --workdir="$workdir" &
  child=$!
  echo "$child" >"$folder/child"
  (while sleep "${NUWAXL_COPY_SECONDS:-60}" && kill -0 "$child" 2>/dev/null; do cp "$folder/log" "$copy"; done) &
  while :; do # a signal interrupts wait; a child that ended stays until it is waited for
    wait "$child"
    code=$?
    kill -0 "$child" 2>/dev/null || break
  done
  timeout 60 cp "$folder/log" "$copy" # before the end is told: the slice may be deleted then
  echo "$code" >"$folder/exit.part" && mv "$folder/exit.part" "$folder/exit"
}

status() {
  local folder="$BASE/runs/$1"
  if [[ -f "$folder/exit" ]]; then
    report "exit=$(cat "$folder/exit")"
  elif [[ ! -d "$folder" ]]; then
    report none
  elif alive "$1"; then
    report running
  elif [[ -f "$folder/exit" ]]; then # it ended between the first look and the second
    report "exit=$(cat "$folder/exit")"
  else
    report lost
  fi
}

stop() {
  local folder="$BASE/runs/$1" child
  child="$(cat "$folder/child" 2>/dev/null || true)"
  if [[ -n "$child" && ! -f "$folder/exit" ]]; then
    kill -TERM "$child" 2>/dev/null
    for _ in $(seq "$2"); do
      kill -0 "$child" 2>/dev/null || break
      sleep 1
    done
    kill -KILL "$child" 2>/dev/null
    sleep 1
  fi
  status "$1"
}

container() {
  local generation="$1" workdir="$2"
  shift 2
  PYTHON="$(command -v python3)"
  "$PYTHON" -c 'import nuwaxl_jax, jax, libtpu' 2>/dev/null || "$PYTHON" -m pip install --quiet -e "$CODE[tpu]" || exit 2
  environment "$generation" "$workdir"
  exec "$PYTHON" -m nuwaxl_jax.main "$@" --workdir="$workdir" # in our place, so that SIGTERM reaches it
}

shift
case "$STAGE" in
setup) setup "$@" ;;
mount) mount_place "$@" ;;
preflight) preflight "$@" ;;
start) start "$@" ;;
supervise) supervise "$@" ;;
status) status "$@" ;;
log) tail -c "+$(($2 + 1))" "$BASE/runs/$1/log" 2>/dev/null | head -c 200000 ;;
tail) tail -n "$2" "$BASE/runs/$1/log" 2>/dev/null ;;
stop) stop "$@" ;;
container) container "$@" ;;
*) fail "unknown step $STAGE" ;;
esac
