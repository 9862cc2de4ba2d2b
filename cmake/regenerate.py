#!/usr/bin/env python3
"""Makes the golden files of tests/golden anew and compares them with those that are committed.

Each tests/golden/make_*.py is run as `make_X.py FOLDER` and writes into FOLDER what belongs into tests/golden. The
packages it needs are named, with their versions, in tests/golden/requirements.txt; they are installed into a virtual
environment in the cache folder, outside the tree.
"""

import array
import filecmp
import hashlib
import operator
import os
import pathlib
import subprocess
import sys
import tempfile
import venv

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"


def cache_folder():
    if home := os.environ.get("QIAO_HOME"):
        return pathlib.Path(home)
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "qiao"


def python_with(requirements):
    """The interpreter of a virtual environment that holds `requirements`; made where it is not there yet."""
    text = requirements.read_bytes()
    folder = cache_folder() / "venv" / hashlib.sha256(text).hexdigest()[:16]
    python = folder / "bin" / "python"
    ready = folder / "ready"
    if not ready.exists():
        print(f"regenerate: installing {requirements.relative_to(ROOT)} into {folder}", flush=True)
        venv.EnvBuilder(with_pip=True, clear=True).create(folder)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", requirements],
                       check=True, stdin=subprocess.DEVNULL)
        ready.touch()
    return python


def same(made, committed):
    """The same bytes; logits (*.f32), which PyTorch sums in another order on another processor, within 1e-5 of the largest."""
    if filecmp.cmp(made, committed, shallow=False):
        return True
    if made.suffix != ".f32" or made.stat().st_size != committed.stat().st_size:
        return False
    a, b = array.array("f", made.read_bytes()), array.array("f", committed.read_bytes())
    return max(map(abs, map(operator.sub, a, b)), default=0) <= 1e-5 * max(map(abs, b), default=0)


def compare(made):
    """Prints what differs; the number of files that do."""
    different = 0
    files = sorted(path for path in made.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    for path in files:
        committed = GOLDEN / path.relative_to(made)
        if not committed.exists():
            print(f"regenerate: {committed.relative_to(ROOT)} is not committed")
        elif not same(path, committed):
            print(f"regenerate: {committed.relative_to(ROOT)} differs")
        else:
            continue
        different += 1
    print(f"regenerate: {len(files)} files made, {different} differ from those that are committed")
    return different


def main():
    scripts = sorted(GOLDEN.glob("make_*.py"))
    if not scripts:
        print("regenerate: no tests/golden/make_*.py yet")
        return 0
    python = python_with(GOLDEN / "requirements.txt")
    with tempfile.TemporaryDirectory() as folder:
        for script in scripts:
            print(f"regenerate: {script.name}", flush=True)
            # One thread: sums in one order, so that a file comes out the same on every machine of a kind.
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "HF_HUB_OFFLINE": "1"}
            subprocess.run([python, "-B", script, folder], check=True, stdin=subprocess.DEVNULL, env=environment)
        return 1 if compare(pathlib.Path(folder)) else 0


if __name__ == "__main__":
    sys.exit(main())
