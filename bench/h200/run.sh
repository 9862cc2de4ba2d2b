#!/usr/bin/env bash
# What the CUDA chip reaches on the GPU at hand, beside PyTorch in the same run: one table in Markdown.
#
#   bench/h200/run.sh [--qiao PATH] [--out FOLDER] [--shapes "llama-3.1-8b qwen3-8b …"] [--minutes N] [--quick]
#                     [--no-training]
#
# Needs no network: models have real dimensions and random weights (make_model.py), written to memory (/dev/shm) where
# there is one. Needs python3 with torch and safetensors, and a built program (build/bin/qiao of the cuda preset).
# All is measured of the first shape, then training (training.py: llama-124m, qwen2.5-1.5b, llama-3.1-8b), then decoding
# and prefill of the others (qwen3-8b, qwen3-30b-a3b), as far as --minutes go (8): what does not fit in time is skipped
# and said, as is what does not fit in memory, with its bytes. --quick leaves out contexts of 8000, answers of 2048
# tokens, the table of ops and training in FP8. Beside each product of a layer stands cuBLASLt's time
# (cublaslt_peer.cc), where it can be built: with nvcc, or with the wheels that PyTorch came with.
set -u
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P) || exit 1
qiao=$here/../../build/bin/qiao out='' shapes='llama-3.1-8b qwen3-8b qwen3-30b-a3b' minutes=8 quick='' training=1
while (($#)); do
  case $1 in
    --qiao | --out | --shapes | --minutes) (($# > 1)) || { echo "run.sh: $1: a value was expected after it" >&2; exit 2; } ;;&
    --qiao) qiao=$2 && shift ;;
    --out) out=$2 && shift ;;
    --shapes) shapes=$2 && shift ;;
    --minutes) minutes=$2 && shift ;;
    --quick) quick=1 ;;
    --no-training) training='' ;;
    *) sed -n '2,15s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit 2 ;;
  esac
  shift
done
[[ $minutes =~ ^[0-9]{1,4}$ ]] || { echo "run.sh: --minutes $minutes: a number of minutes was expected" >&2; exit 2; }
[[ -x $qiao ]] || { echo "run.sh: no program at $qiao; build it (./test --cuda) or name one with --qiao" >&2; exit 1; }
out=${out:-$(mktemp -d)}
mkdir -p "$out"
begin=$SECONDS
exec 3>&2  # a measurement's own words may go to a log
say() { printf 'run.sh: %s (%d s)\n' "$*" $((SECONDS - begin)) >&3; }
models=$(mktemp -d -p /dev/shm 2>/dev/null || mktemp -d)
tools=$(mktemp -d)
trap 'jobs -p | xargs -r kill 2>/dev/null; rm -rf "$models" "$tools"' EXIT

"$qiao" devices --json >"$out/devices.json" || exit 1
gpu_bytes=$(python3 - "$out/devices.json" <<'END'
import json, sys
gpu = next((d for d in json.load(open(sys.argv[1])) if d["chip"].startswith("cuda")), {"unavailable": "this program was built without cuda"})
print(gpu.get("memory_bytes") or sys.exit(f"run.sh: no GPU to measure: {gpu['unavailable']}"))
END
) || exit 1
if [[ ! $quick ]]; then
  say "every op, while the first model is written"
  { timeout 300 "$qiao" conformance --backend cuda --json >"$out/conformance.json" 2>"$out/conformance.log" || say "conformance failed or took too long: see $out/conformance.log and .json"; } &
fi
skipped() { printf '{"what": "skipped", "model": "%s", %s}\n' "$1" "$2" >>"$out/qiao.jsonl"; }
# within SECONDS SHAPE COMMAND…: the command, with so much time or what is left of it; where none is left a row says so.
within() {
  local seconds=$1 shape=$2 left=$((60 * 10#$minutes - (SECONDS - begin)))
  shift 2
  if ((left < 5)); then
    say "$shape: no time is left for: $*"
    [[ $told == "$shape $part" ]] || skipped "$shape" "\"no_time_for\": \"$part\""
    told="$shape $part"
    return 1
  fi
  timeout $((left < seconds ? left : seconds)) "$@" || { say "$shape: failed: $* (logs are in $out)" && return 1; }
}
told='' part=''
# part SHAPE WHAT: what is measured now.
part() { part=$2 && say "$1: $2"; }
bench() { within 120 "$shape" "$qiao" bench -m "$models/$shape" --device cuda -q --json -c 16384 "$@" >>"$out/qiao.jsonl"; }
serve() { within 150 "$shape" python3 "$here/serve_throughput.py" "$qiao" "$models/$shape" "$@" >>"$out/qiao.jsonl"; }
build_peer() {
  local source=$here/cublaslt_peer.cc program=$tools/cublaslt_peer wheel
  command -v nvcc >/dev/null && nvcc -O2 -std=c++20 -o "$program" "$source" -lcublasLt && return
  wheel=$(python3 -c 'import nvidia.cu13 as n; print(list(n.__path__)[0])') || return
  c++ -O2 -std=c++20 -I"$wheel/include" -o "$program" "$source" -L"$wheel/lib" -l:libcublasLt.so.13 -l:libcudart.so.13 -Wl,-rpath,"$wheel/lib"
}
products() {
  local weights fast tokens=128,512,2048,8192
  [[ $quick ]] && tokens=512,2048
  weights=$(python3 "$here/make_model.py" "$shape" - --tokenizer - --products) || return
  for fast in '' --fast; do
    within 120 "$shape" "$qiao" conformance --backend cuda --products "$weights" --tokens $tokens --json $fast >>"$out/products.jsonl" 2>>"$out/products.log"
  done
  if [[ ! -x $tools/cublaslt_peer ]] && ! build_peer >>"$out/products.log" 2>&1; then
    say "no cuBLASLt beside them: neither nvcc nor the wheels of CUDA 13 build cublaslt_peer.cc: see $out/products.log"
    return
  fi
  within 120 "$shape" "$tools/cublaslt_peer" "$weights" $tokens >>"$out/products.jsonl" 2>>"$out/products.log"
}
# measure SHAPE [whole]
measure() {
  local shape=$1 whole=${2-} weights room
  weights=$(python3 "$here/make_model.py" "$shape" - --tokenizer - --bytes) || exit 1
  room=$(df --output=avail -B1 "$models" | tail -n 1)
  if ((weights > gpu_bytes || weights > room)); then
    skipped "$shape" "\"bytes\": $weights"
    return
  fi
  part "$shape" "writing $((weights / 1000000)) MB"
  within 300 "$shape" python3 "$here/make_model.py" "$shape" "$models/$shape" --tokenizer "$here/../../tests/golden/chat/tokenizer.json"
  local written=$?
  wait
  ((written == 0)) || return
  part "$shape" "decoding"
  bench -b 2048 -p 0 -n 32 -r 3 -s 1,8,32,128,256 -d 1000
  part "$shape" "prefill"
  bench -b 8192 -p 512,2048,8192 -n 0 -r 3
  if [[ $whole ]]; then
    part "$shape" "products of its layers, without and with --fast, and cuBLASLt's"
    products
  fi
  part "$shape" "PyTorch"
  within 200 "$shape" python3 "$here/pytorch_peer.py" "$shape" --decode 1:1000 8:1000 32:1000 128:1000 --prefill 512 2048 8192 --upload "$models/$shape" >>"$out/pytorch.jsonl"
  if [[ $whole ]]; then
    part "$shape" "serving"
    serve --clients 128 --requests 128
    part "$shape" "what an order of sums that no batch changes costs"
    bench --fast -b 8192 -p 512,2048,8192 -n 0 -r 3
  fi
  part "$shape" "the same in FP8, quantized as it loads, keys and values too"
  bench --quantize fp8 --kv-type fp8 -b 2048 -p 0 -n 32 -r 3 -s 1,8,32,128,256 -d 1000
  bench --quantize fp8 --kv-type fp8 -b 8192 -p 512,2048,8192 -n 0 -r 3
  [[ ! $whole ]] || serve --clients 256 --requests 256 --quantize fp8 --kv-type fp8
  if [[ ! $quick ]]; then
    [[ ! $whole ]] || serve --clients 256 --requests 256 --input 128 --output 2048 --quantize fp8 --kv-type fp8
    part "$shape" "decoding far into a text"
    bench -b 2048 -p 0 -n 32 -r 3 -s 1,8,32 -d 8000
    bench --quantize fp8 --kv-type fp8 -b 2048 -p 0 -n 32 -r 3 -s 1,8,32 -d 8000
  fi
  rm -rf "${models:?}/$shape"
}
train() {
  local dtypes=(bf16)
  [[ $quick ]] || dtypes+=(fp8)
  part "$1" "training"
  for dtype in "${dtypes[@]}"; do
    within 90 "$1" python3 "$here/training.py" "$@" --qiao "$qiao" --dtype "$dtype" >>"$out/qiao.jsonl" 2>>"$out/training.log"
  done
  within 90 "$1" python3 "$here/training.py" "$@" >>"$out/pytorch.jsonl" 2>>"$out/training.log"
}
read -ra shapes <<<"$shapes"
measure "${shapes[0]}" whole
wait
if [[ $training ]]; then
  train llama-124m --batch 64 --micro-batch 32 --sequence 1024
  train qwen2.5-1.5b --batch 16 --micro-batch 8 --sequence 1024
  ((gpu_bytes < 130000000000)) || train llama-3.1-8b --batch 8 --micro-batch 4 --sequence 1024 --small-states
fi
for shape in "${shapes[@]:1}"; do measure "$shape"; done
say "done; the files are in $out"
python3 "$here/report.py" "$out"
