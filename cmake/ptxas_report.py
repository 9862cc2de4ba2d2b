#!/usr/bin/env python3
"""What ptxas said of each kernel: registers, shared memory, bytes spilled to local memory.

usage: ptxas_report.py BUILD_FOLDER    exit status 1 where a kernel spills more than MAX_SPILL bytes
"""

import pathlib
import re
import shutil
import subprocess
import sys

# Stores and loads of a thread together: some dozens cost nothing that can be measured, more is a kernel of the wrong shape.
MAX_SPILL = 64

ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
SPILL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers(?:.*?, (\d+) bytes smem)?")


def readable(names):
    """The kernels' names as C++ has them, without namespaces and arguments."""
    if not names or shutil.which("c++filt") is None:
        return {name: name for name in names}
    out = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    short = {}
    for name, full in zip(names, out.split("\n")):
        full = re.sub(r"\(anonymous namespace\)::|_GLOBAL__N__\w+::|qiao::cuda::|^void ", "", full)
        short[name] = full.split("(")[0] if "<" not in full.split("(")[0] else full[: full.rfind(">") + 1]
    return short


def read(path):
    """(kernel, architecture, registers, shared bytes, stack, spilled bytes) of one report."""
    rows, name, arch, stack, spilled = [], None, "", 0, 0
    for line in path.read_text(errors="replace").split("\n"):
        if match := ENTRY.search(line):
            name, arch, stack, spilled = match[1], match[2], 0, 0
        elif (match := SPILL.search(line)) and name:
            stack, spilled = int(match[1]), int(match[2]) + int(match[3])
        elif (match := USED.search(line)) and name:
            rows.append((name, arch, int(match[1]), int(match[2] or 0), stack, spilled))
            name = None
    return rows


def main():
    if len(sys.argv) != 2 or not pathlib.Path(sys.argv[1]).is_dir():
        print(__doc__, file=sys.stderr)
        return 2
    reports = sorted(pathlib.Path(sys.argv[1]).rglob("*.cu.o.ptxas"))
    # Of a source that is no more an old report may lie there.
    rows = [(path.name.removesuffix(".o.ptxas"), *row) for path in reports
            if path.with_suffix("").exists() for row in read(path)]
    if not rows:
        print(f"ptxas: no reports under {sys.argv[1]}: was a kernel compiled?", file=sys.stderr)
        return 1
    names = readable(sorted({row[1] for row in rows}))
    print(f"{'source':<22} {'kernel':<58} {'registers':>9} {'shared':>7} {'stack':>6} {'spilled':>8}")
    worst = []
    for source, name, _, registers, shared, stack, spilled in rows:
        print(f"{source:<22} {names[name][:58]:<58} {registers:>9} {shared:>7} {stack:>6} {spilled:>8}")
        if spilled > MAX_SPILL:
            worst.append(f"{source}: {names[name]} spills {spilled} bytes; the limit is {MAX_SPILL}")
    print(f"ptxas: {len(rows)} kernels, {sum(1 for row in rows if row[-1] > 0)} spill", file=sys.stderr)
    for line in worst:
        print(f"ptxas: {line}", file=sys.stderr)
    return 1 if worst else 0


if __name__ == "__main__":
    sys.exit(main())
