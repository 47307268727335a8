#!/usr/bin/env bash
# One worker for each GPU of this machine, each with its own port and DATA_DIR; put nginx.conf or the gateway before.
# deploy/multi_gpu.sh                                            every GPU that nvidia-smi lists, ports 8001, 8002, …
# GPUS="0 2" FIRST_PORT=9000 deploy/multi_gpu.sh                 these two
# GPUS="cpu cpu" DEFAULT_MODEL=pocket-edit deploy/multi_gpu.sh   no GPU: two workers on the CPU
# Other settings come from the environment and .env, the same for all. A worker that ends is started again, except
# one that could not read its settings. SIGTERM or Ctrl-C lets all finish what they hold; the second one does not wait.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

FIRST_PORT=${FIRST_PORT:-8001}
DATA_ROOT=${DATA_ROOT:-data}
PYTHON=${PYTHON:-python}
if [ -z "${GPUS:-}" ]; then
  GPUS=$(nvidia-smi --query-gpu=index --format=csv,noheader) || { echo "nvidia-smi finds no GPU; set GPUS" >&2; exit 2; }
fi

# keep DEVICE NUMBER: one worker, until it is told to stop. Its signals come from here alone (setsid), not from the
# terminal as well, for a second signal cuts its drain short.
keep() {
  local device=$1 port=$((FIRST_PORT + $2)) stopping='' child='' status
  trap 'stopping=1; [ -n "$child" ] && kill -TERM "$child" 2> /dev/null' TERM
  trap '' INT
  [ "$device" = cpu ] && device=
  while [ -z "$stopping" ]; do
    CUDA_VISIBLE_DEVICES=$device STANDALONE_MODE=1 API_HOST=${API_HOST:-127.0.0.1} API_PORT=$port \
      DATA_DIR=$DATA_ROOT/$port setsid "$PYTHON" handler.py &
    child=$!
    [ -n "$stopping" ] && kill -TERM "$child" # told to stop in that very moment
    while wait "$child"; status=$?; kill -0 "$child" 2> /dev/null; do :; done # a signal ends a wait, not the worker
    child=
    [ "$status" -eq 2 ] && return 2
    [ -n "$stopping" ] && return "$status"
    echo "the worker at port $port ended with $status; starting it again" >&2
    sleep 1
  done
}

keepers=()
stop() { kill -TERM "${keepers[@]}" 2> /dev/null; }
trap stop TERM INT
number=0
for device in $GPUS; do
  keep "$device" "$number" &
  keepers+=($!)
  echo "GPU $device: http://127.0.0.1:$((FIRST_PORT + number))"
  number=$((number + 1))
done

worst=0
for keeper in "${keepers[@]}"; do
  while wait "$keeper"; status=$?; kill -0 "$keeper" 2> /dev/null; do :; done
  [ "$status" -gt "$worst" ] && worst=$status
done
exit "$worst"
