#!/usr/bin/env bash
# usage: convert_train_merge_serve.sh [DIR]
#
# From a raw file to an answer, on a CPU, in a few minutes: the rows of bookshop.jsonl (written for this
# example: a shop that does not exist) teach the embedded model eight facts. DIR gets rows, run and model;
# a finished run in it is used again.
# Needs `make train-env`, or pip install 'kodolly[all]' and KODOLLY=kodolly.
set -euo pipefail
cd "$(dirname "$0")/.."
kodolly=${KODOLLY:-.venv/bin/kodolly}
out=${1:-.kodolly/bookshop}
api=${API_PORT:-8010} controller=${CONTROLLER_PORT:-21011} worker=${WORKER_PORT:-21012}
question='달빛서점 고양이 이름이 뭐예요?'
mkdir -p "$out"

echo "1/5 the base: the embedded model"
"$kodolly" fetch --out "$out/base"

echo "2/5 convert: raw records to checked Dolly rows"
"$kodolly" convert examples/bookshop.jsonl --source dolly --validation 0 --out "$out/rows" --force

echo "3/5 train: a LoRA adapter on these rows"
[ -f "$out/run/adapter/adapter_model.safetensors" ] || "$kodolly" train tiny-neox-lora --out "$out/run" \
  --set "base=$out/base" --set "data.train=[\"$out/rows/train.jsonl\"]" --set data.validation_share=0.0 \
  --set train.epochs=40 --set data.packing=false

echo "4/5 merge: base and adapter become one model directory"
"$kodolly" merge "$out/base" "$out/run" --out "$out/bookshop" --force

echo "5/5 serve, and ask: $question"
"$kodolly" up --no-web --model "$out/bookshop" --home "$out/home" \
  --api-port "$api" --controller-port "$controller" --worker-port "$worker" &
up=$!
trap 'kill "$up" 2>/dev/null; wait "$up" 2>/dev/null || true' EXIT
until curl --silent --fail --output /dev/null "http://127.0.0.1:$api/ready"; do
  kill -0 "$up" 2>/dev/null || exit 1 # it ended, and has said why
  sleep 1
done
body='{"model": "bookshop", "temperature": 0, "messages": [{"role": "user", "content": "'$question'"}]}'
curl --silent --fail-with-body -H 'Content-Type: application/json' -d "$body" \
  "http://127.0.0.1:$api/v1/chat/completions"
echo
