#!/usr/bin/env python3
"""Holds the tree to docs/design.md: includes to the layers, sources to 800 lines, chip types to their folders.

usage: check_layers.py [ROOT]     prints each violation as FILE:LINE: …; exit status 1 where there is one
"""

import pathlib
import re
import sys

# The layers, lowest first. A folder may include itself, the folders of lower layers, and the public headers of its
# neighbours, as long as no two neighbours come to include each other.
LAYERS = [
    ["base"],
    ["parallel"],
    ["tensor"],
    ["backend"],  # with backend/ops
    ["backend/conformance"],
    ["text", "vision", "formats", "hub"],
    ["constrain"],
    ["chat"],
    ["nn", "models"],
    ["infer", "train", "convert", "recommend", "batch"],
    ["eval"],
    ["serve", "cli"],
]
RANK = {folder: rank for rank, layer in enumerate(LAYERS) for folder in layer}
# Chips may include what is below and in the ops layer, and themselves. Only the registry includes them, and conformance
# the reference: what it holds the others to.
CHIPS = ["backend/reference", "backend/cpu", "backend/cuda", "backend/opencl"]
REGISTRY = "backend/registry"

MAX_LINES = 800
SOURCE_ENDINGS = {".cc", ".h", ".cu", ".cuh", ".py", ".sh", ".cmake", ".js", ".css", ".html"}
SOURCE_FOLDERS = ["src", "tests", "bench", "fuzz", "cmake", "python", "examples", "sql"]

INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')
SYSTEM_INCLUDE = re.compile(r"^\s*#\s*include\s+<([^>]+)>")
CHIP_HEADERS = re.compile(r"^(immintrin|x86intrin|[a-z]mmintrin|arm_neon|cuda\w*|cublas\w*|cudnn\w*|nccl\w*|CL/\w+)\b")
CHIP_WORDS = re.compile(r"\b(__m(128|256|512)[id]?|_mm(256|512)?_\w+|cuda[A-Z]\w*|cublas\w+|cudnn\w+|nccl[A-Z]\w*|cl_mem"
                        r"|__CUDACC__|__AVX\w*__)\b|#\s*if.*\bCUDA\b")
ABSOLUTE_PATH = re.compile(r"""(?<![\w.$}/:*~-])/(work|root|home|opt|mnt|Users)/\w""")


def folder_of(path):
    """'backend/cpu' for backend/cpu/…, 'backend' for the rest of backend (with ops), 'text' for text/…."""
    parts = pathlib.PurePosixPath(path).parts
    if len(parts) > 2 and parts[0] == "backend" and parts[1] != "ops":
        return "/".join(parts[:2])
    return parts[0] if len(parts) > 1 else ""


def inside(source, target):
    """Whether `target` is one of the insides of its folder: a header named *internal*, or in a folder so named."""
    return "internal" in target and folder_of(source) != folder_of(target)


def why_not(source, target):
    """Why src/SOURCE may not include TARGET; None where it may."""
    here, there = folder_of(source), folder_of(target)
    if here == there:
        return None
    if inside(source, target):
        return f"{target} is an inside of {there}"
    if there in CHIPS:
        if here == REGISTRY or (here, there) == ("backend/conformance", "backend/reference"):
            return None
        return f"only {REGISTRY} and {there} itself may include {target}"
    if there == REGISTRY:
        return f"{target}: nothing includes the registry; ask for a chip by name through backend/backend.h"
    if here in CHIPS or here == REGISTRY:
        allowed = RANK.get(there, len(LAYERS)) <= RANK["backend"]
        return None if allowed else f"a chip may include backend, tensor, parallel and base, not {there}"
    if here not in RANK:
        return f"folder {here} is not in the table of layers"
    if there not in RANK:
        return f"folder {there} is not in the table of layers"
    if there == "backend/conformance" and here != "cli":
        return "only cli includes backend/conformance"
    if RANK[there] > RANK[here]:
        return f"{here} may not include {there}: it is a higher layer"
    return None


def check_source(root, path, report, edges):
    name = path.relative_to(root).as_posix()
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text.split("\n")
    count = len(lines) - (lines[-1] == "")
    if count > MAX_LINES:
        report(name, MAX_LINES + 1, f"{count} lines; the limit is {MAX_LINES}: split it at a seam")
    of_src = name.startswith("src/")
    inner = name[len("src/"):] if of_src else ""
    here = folder_of(inner)
    for number, line in enumerate(lines, 1):
        if ABSOLUTE_PATH.search(line):
            report(name, number, "an absolute path of one machine")
        if not of_src or path.suffix not in {".cc", ".h", ".cu", ".cuh"}:
            continue
        if match := INCLUDE.match(line):
            target = match[1]
            if not (root / "src" / target).exists() and not target.endswith("version.h"):
                report(name, number, f'"{target}" is no file of src/ (includes start at src/)')
            elif reason := why_not(inner, target):
                report(name, number, reason)
            elif here != folder_of(target):
                edges.setdefault((here, folder_of(target)), (name, number))
        if here in CHIPS:
            continue
        code = line.split("//")[0]
        header = SYSTEM_INCLUDE.match(line)
        if (header and CHIP_HEADERS.match(header[1])) or CHIP_WORDS.search(code):
            report(name, number, "a chip's types and headers stay in the chip's folder")


def check(root):
    """All violations, as (file, line, text)."""
    found = []
    edges = {}

    def report(name, line, text):
        found.append((name, line, text))

    for folder in SOURCE_FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in SOURCE_ENDINGS and path.is_file() and "__pycache__" not in path.parts:
                check_source(root, path, report, edges)
    for path in [root / "qiao", root / "test", root / ".ci" / "run", root / "CMakeLists.txt"]:
        if path.is_file():
            check_source(root, path, report, edges)
    for (here, there), (name, line) in sorted(edges.items()):
        if here < there and (there, here) in edges:
            report(name, line, f"{here} and {there} include each other")
    return sorted(found)


def main():
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent.parent
    if not (root / "src").is_dir():
        print(f"layers: {root} has no folder src", file=sys.stderr)
        return 1
    found = check(root)
    for name, line, text in found:
        print(f"{name}:{line}: {text}")
    print(f"layers: {len(found)} violations" if found else "layers: clean", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
