#!/usr/bin/env bash
# keep_ptxas.sh COMPILER ARGUMENT…: runs nvcc and keeps what ptxas says of registers and spills beside the object
# (OBJECT.ptxas), where cmake/ptxas_report.py reads it; the rest of what it prints stays where it belongs.
set -u
object=
previous=
for argument in "$@"; do
  [[ $previous == -o ]] && object=$argument
  previous=$argument
done
case $object in
  *.o) ;;
  *) exec "$@" ;;
esac
"$@" 2>"$object.ptxas"
status=$?
grep -v -E '^ptxas info|^    [0-9]+ bytes stack frame|^$' "$object.ptxas" >&2
exit "$status"
