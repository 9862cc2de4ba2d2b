#!/usr/bin/env bash
# What the CUDA chip reaches on the GPU at hand, beside PyTorch in the same run: one table.
#
#   bench/h200/run.sh [--qiao PATH] [--out FOLDER] [--shapes "llama-3.1-8b …"] [--quick]
#
# Needs no network: models have real dimensions and random weights (make_model.py), written to memory (/dev/shm) where
# they fit. Needs python3 with torch and safetensors, and a built program (build/bin/qiao of the cuda preset). --quick
# leaves out contexts of 8k and the op table. What does not fit in the GPU's memory is skipped, with its bytes.
set -u
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P) || exit 1
qiao=$here/../../build/bin/qiao out= shapes="llama-3.1-8b qwen3-8b" quick=
while (($#)); do
  case $1 in
    --qiao) qiao=$2 && shift ;;
    --out) out=$2 && shift ;;
    --shapes) shapes=$2 && shift ;;
    --quick) quick=1 ;;
    *) sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit 2 ;;
  esac
  shift
done
[[ -x $qiao ]] || { echo "run.sh: no program at $qiao; build it (./test --cuda) or name one with --qiao" >&2; exit 1; }
out=${out:-$(mktemp -d)}
mkdir -p "$out"
begin=$SECONDS
say() { printf 'run.sh: %s (%d s)\n' "$*" $((SECONDS - begin)) >&2; }
models=$(mktemp -d -p /dev/shm 2>/dev/null || mktemp -d)
trap 'rm -rf "$models"' EXIT

"$qiao" devices --json >"$out/devices.json" || exit 1
gpu_bytes=$(python3 -c 'import torch; print(torch.cuda.get_device_properties(0).total_memory)') || exit 1
for shape in $shapes; do
  weights=$(python3 "$here/make_model.py" "$shape" - --tokenizer - --bytes)
  room=$(df --output=avail -B1 "$models" | tail -n 1)
  if ((weights > gpu_bytes || weights > room)); then
    echo "{\"what\": \"skipped\", \"model\": \"$shape\", \"bytes\": $weights}" >>"$out/qiao.jsonl"
    continue
  fi
  say "$shape: writing $((weights / 1000000)) MB"
  python3 "$here/make_model.py" "$shape" "$models/$shape" --tokenizer "$here/../../tests/golden/chat/tokenizer.json" || exit 1
  say "$shape: decoding"
  "$qiao" bench -m "$models/$shape" --device cuda -q --json -c 16384 -b 2048 -p 0 -n 32 -r 3 -s 1,8,32,128 -d 1000 >>"$out/qiao.jsonl"
  [[ $quick ]] || "$qiao" bench -m "$models/$shape" --device cuda -q --json -c 16384 -b 2048 -p 0 -n 32 -r 3 -s 1,8,32 -d 8000 >>"$out/qiao.jsonl"
  say "$shape: prefill"
  for tokens in 512 2048 8192; do
    "$qiao" bench -m "$models/$shape" --device cuda -q --json -c 16384 -b "$tokens" -p "$tokens" -n 0 -r 3 >>"$out/qiao.jsonl"
  done
  rm -rf "${models:?}/$shape"
  say "$shape: PyTorch"
  cases="1:1000 8:1000 32:1000 128:1000"
  [[ $quick ]] || cases+=" 1:8000 8:8000 32:8000"
  # shellcheck disable=SC2086  # one argument a case
  python3 "$here/pytorch_peer.py" "$shape" --decode $cases --prefill 512 2048 8192 >>"$out/pytorch.jsonl" || say "$shape: PyTorch failed"
done
if [[ ! $quick ]]; then
  say "every op"
  "$qiao" conformance --backend cuda --json >"$out/conformance.json" || say "conformance is not green"
fi
say "done; the files are in $out"
python3 "$here/report.py" "$out"
