#!/usr/bin/env bash
# Whether the CUDA chip is right on the GPU at hand: what no test without one can show.
#
#   bench/h200/check.sh [--qiao PATH] [--out FOLDER] [--device cuda:N] [--sanitizer-seconds N]
#
# Every op against the reference (the bits of few rows and many compared), the same by compute-sanitizer's memcheck and
# racecheck in small cases, each for N seconds at most (300), and whether a device that was lost can be had again
# (device_reset.cu, where nvcc is). A line for each; exit code 1 where one failed. The full output is in FOLDER.
set -u
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P) || exit 1
qiao=$here/../../build/bin/qiao out='' device=cuda limit=300
while (($#)); do
  case $1 in
    --qiao | --out | --device | --sanitizer-seconds)
      (($# > 1)) || { echo "check.sh: $1: a value was expected after it" >&2; exit 2; }
      ;;&
    --qiao) qiao=$2 && shift ;;
    --out) out=$2 && shift ;;
    --device) device=$2 && shift ;;
    --sanitizer-seconds) limit=$2 && shift ;;
    *) sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit 2 ;;
  esac
  shift
done
[[ $limit =~ ^[1-9][0-9]{0,5}$ ]] || { echo "check.sh: --sanitizer-seconds $limit: a number of seconds was expected" >&2; exit 2; }
[[ $device =~ ^cuda(:[0-9]+)?$ ]] || { echo "check.sh: --device $device: cuda or cuda:N was expected" >&2; exit 2; }
[[ -x $qiao ]] || { echo "check.sh: no program at $qiao; build it (./test --cuda) or name one with --qiao" >&2; exit 1; }
out=${out:-$(mktemp -d)}
mkdir -p "$out"
failed=0
# check NAME SECONDS COMMAND…: its output to NAME.log; 124 is a time that ran out, which is told apart from a fault.
check() {
  local name=$1 seconds=$2 begin=$SECONDS code
  shift 2
  timeout -k 10 "$seconds" "$@" >"$out/$name.log" 2>&1
  code=$?
  case $code in
    0) printf '%-12s ok, %d s\n' "$name" $((SECONDS - begin)) ;;
    124)
      local reports
      reports=$(grep -c '^========= \(Error\|Warning\|Invalid\|Program hit\)' "$out/$name.log")
      ((reports == 0)) || failed=1
      printf '%-12s not ended in %d s, with %d reports until then\n' "$name" "$seconds" "$reports"
      ;;
    *) failed=1 && printf '%-12s FAILED with %d: the last lines of %s are\n' "$name" $code "$out/$name.log" && tail -n 20 "$out/$name.log" | sed 's/^/    /' ;;
  esac
}
check devices 60 "$qiao" devices
grep -i 'cuda' "$out/devices.log"
grep -q '^ *not available: cuda' "$out/devices.log" && { echo "check.sh: no GPU to check" >&2; exit 1; }
check conformance 300 "$qiao" conformance --backend "$device" --no-bench
grep -i 'FAIL\|green' "$out/conformance.log"
if command -v compute-sanitizer >/dev/null; then
  check memcheck "$limit" compute-sanitizer --tool memcheck --error-exitcode 9 "$qiao" conformance --backend "$device" --quick
  check racecheck "$limit" compute-sanitizer --tool racecheck --error-exitcode 9 "$qiao" conformance --backend "$device" --quick
else
  echo 'memcheck     not run: compute-sanitizer is not in PATH (it comes with the CUDA toolkit)'
fi
if command -v nvcc >/dev/null; then
  nvcc -O2 -o "$out/device_reset" "$here/device_reset.cu" && check reset 60 "$out/device_reset"
else
  echo 'reset        not run: nvcc is not in PATH'
fi
echo "The files are in $out"
exit $failed
