#!/usr/bin/env bash
# Sends several edits of one picture at once to POST /edit and says how each ended.
# Change the values here, or set them: IMAGE_PATH=me.jpg BASE_URL=http://gpu:8000 REQUESTS=8 deploy/concurrency_test.sh
# Set API_KEY where the server asks for one. Exits with 1 when a request was not answered with a picture.
set -euo pipefail

BASE_URL=${BASE_URL:-http://localhost:8000}
IMAGE_PATH=${IMAGE_PATH:-$(dirname "$0")/../assets/chelsea.jpg}
PROMPT=${PROMPT:-Add a red hat}
REQUESTS=${REQUESTS:-4}
OUT=${OUT:-$(mktemp -d)}

edit() {
  curl --silent --show-error --max-time "${MAX_SECONDS:-600}" \
    ${API_KEY:+--header "X-API-Key: $API_KEY"} \
    --form "image=@$IMAGE_PATH" --form "prompt=$PROMPT" --form "seed=$1" \
    --output "$OUT/$1.png" \
    --write-out "$1: %{http_code} %{content_type} in %{time_total} s, %{size_download} bytes\n" \
    "$BASE_URL/edit" | tee "$OUT/$1.txt"
}

echo "$REQUESTS edits of $IMAGE_PATH at once, to $BASE_URL; pictures go to $OUT"
started=$(date +%s%N)
for number in $(seq "$REQUESTS"); do edit "$number" & done
wait
made=$(cat "$OUT"/*.txt | grep -c ' 200 image/png ' || true)
echo "$made of $REQUESTS in $(( ($(date +%s%N) - started) / 1000000 )) ms"
[ "$made" -eq "$REQUESTS" ]
