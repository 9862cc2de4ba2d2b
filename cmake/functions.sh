# shellcheck shell=bash disable=SC2154
# What ./qiao, ./test and .ci/run share; sourced by bash. $root is the project's folder.

say() { printf '%s\n' "$*" >&2; }

# need_packages STAGE…: installs those packages of cmake/packages.txt that are missing. Asks nothing; where it cannot,
# names them and returns 1. The log goes to build/packages.log.
need_packages() {
  local stage package missing=() names=()
  while read -r stage package; do
    [[ " $* " == *" $stage "* ]] && names+=("$package")
  done < <(grep -v '^#' "$root/cmake/packages.txt")
  if ! command -v dpkg-query >/dev/null; then
    local tool
    for tool in g++ cmake ninja pkg-config python3; do
      command -v "$tool" >/dev/null || missing+=("$tool")
    done
    [[ ${#missing[@]} == 0 ]] && return 0
    say "qiao: not a Debian system, and it lacks: ${missing[*]}. Debian's names of all that is needed: ${names[*]}"
    return 1
  fi
  local installed
  # One that dpkg has never heard of makes dpkg-query fail; what it prints for the others still counts.
  installed=" $(dpkg-query -W -f '${db:Status-Abbrev}${Package} ' "${names[@]}" 2>/dev/null) "
  for package in "${names[@]}"; do
    [[ $installed == *"ii $package "* ]] || missing+=("$package")
  done
  [[ ${#missing[@]} == 0 ]] && return 0

  local as_root=()
  if [[ $EUID != 0 ]]; then
    if ! command -v sudo >/dev/null || ! sudo -n true 2>/dev/null; then
      say "qiao: packages are missing, and this user may not install them. Please run:"
      say "    sudo apt-get install ${missing[*]}"
      return 1
    fi
    as_root=(sudo -n)
  fi
  say "qiao: installing from the distribution: ${missing[*]}"
  mkdir -p "$root/build"
  local log=$root/build/packages.log
  local install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300)
  # A list that is there may be old, and an image often has none: after a failure, once more with a fresh one.
  if ! "${install[@]}" install -y --no-install-recommends "${missing[@]}" </dev/null >"$log" 2>&1; then
    if ! { "${install[@]}" update && "${install[@]}" install -y --no-install-recommends "${missing[@]}"; } \
      </dev/null >"$log" 2>&1; then
      tail -n 15 "$log" >&2
      say "qiao: could not install them (log: $log). Please run:"
      say "    sudo apt-get update && sudo apt-get install ${missing[*]}"
      return 1
    fi
  fi
}

# find_nvcc: prints the path of the compiler of CUDA 13 or newer; fails where there is none.
find_nvcc() {
  local nvcc=${CUDACXX:-} release
  [[ -n $nvcc ]] || nvcc=$(command -v nvcc) || nvcc=/usr/local/cuda/bin/nvcc
  [[ -x $nvcc ]] || return
  release=$("$nvcc" --version | sed -n 's/.*, release \([0-9]*\).*/\1/p')
  ((${release:-0} >= 13)) && printf '%s\n' "$nvcc"
}

# show_progress LABEL LOG: reads ninja's output, keeps it in LOG, shows how far it is: one line rewritten in place on a
# terminal, else a line each fifth. Ctrl-C is ninja's to handle: this ends when ninja closes the pipe.
show_progress() {
  trap '' INT
  local label=$1 log=$2 line percent shown=-20 terminal=0
  [[ -t 2 ]] && terminal=1
  exec 3>>"$log"
  while IFS= read -r line; do
    printf '%s\n' "$line" >&3
    [[ $line =~ ^\[([0-9]+)/([0-9]+)\] ]] || continue
    percent=$((BASH_REMATCH[1] * 100 / BASH_REMATCH[2]))
    if ((terminal)); then
      printf '\r\e[K%s: %3d%%  %d:%02d' "$label" "$percent" $((SECONDS / 60)) $((SECONDS % 60)) >&2
    elif ((percent >= shown + 20)); then
      say "$label: $percent%"
      shown=$percent
    fi
  done
  if ((terminal)); then printf '\r\e[K' >&2; fi
}

# build PRESET TARGET LABEL [CMAKE_ARGUMENT…]: configures and builds. On failure shows the log's tail and returns 1.
# One build at a time in a build folder: a second one waits for the first.
build() {
  local preset=$1 target=$2 label=$3 folder
  shift 3
  case $preset in
    release | cuda) folder=$root/build ;;
    *) folder=$root/build/$preset ;;
  esac
  mkdir -p "$folder"
  local log=$folder/build.log status=0
  (
    if ! flock -n 9; then
      say "$label: waiting for another build in $folder"
      flock 9
    fi
    cd "$root" || exit 1
    # A cache of another checkout (a copied folder) cannot be configured again: it holds nothing worth keeping.
    if [[ -f $folder/CMakeCache.txt ]] && ! grep -qxF "CMAKE_HOME_DIRECTORY:INTERNAL=$PWD" "$folder/CMakeCache.txt"; then
      rm -rf "$folder/CMakeCache.txt" "$folder/CMakeFiles"
    fi
    : >"$folder/started"
    [[ -t 2 ]] && printf '\r\e[K%s: configuring' "$label" >&2
    if ! cmake --preset "$preset" "$@" </dev/null >"$log" 2>&1 9>&-; then
      grep -A 20 -m 1 'CMake Error' "$log" >&2 || tail -n 20 "$log" >&2
      say "$label: configuring failed (log: $log)"
      exit 1
    fi
    SECONDS=0
    set -o pipefail
    NINJA_STATUS='[%f/%t] ' ninja -C "$folder" "$target" </dev/null 2>&1 9>&- | show_progress "$label" "$log" 9>&-
  ) 9>"$folder/lock" || status=$?
  if ((status >= 128 || status == 2)); then
    say "$label: stopped; what is built so far is kept"
    return 130
  elif ((status != 0)); then
    grep -q 'FAILED:' "$log" && { grep -A 25 -m 1 'FAILED:' "$log" | cut -c1-400 >&2; }
    say "$label: failed (log: $log)"
    return 1
  fi
}
