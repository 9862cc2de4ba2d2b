#!/usr/bin/env python3
"""Detects the form of every template that llama.cpp's sources carry (those that models were published with), and reads
back what each writes of a call.

    python3 tests/chat/published_templates.py [--tests build/bin/chat_tests] [--cache FOLDER]

Fetches the source distribution llama-cpp-python with pip (about 77 MB, kept in the cache outside of the tree).
"""
import argparse
import os
import pathlib
import subprocess
import sys
import tarfile

VERSION = "0.3.36"
INSIDE = "/vendor/llama.cpp/models/templates/"


def fetch(cache):
    folder = cache / f"templates-{VERSION}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        # Its metadata is made by the build tool, which is fetched for that; nothing is built.
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", cache,
                        f"llama-cpp-python=={VERSION}"], check=True)
        archive = next(cache.glob(f"llama_cpp_python-{VERSION}.tar.gz"))
        part = folder.with_suffix(".part")
        part.mkdir(exist_ok=True)
        with tarfile.open(archive) as tar:
            for member in tar:
                if INSIDE in member.name and member.isfile() and member.name.endswith(".jinja"):
                    (part / pathlib.PurePosixPath(member.name).name).write_bytes(tar.extractfile(member).read())
        part.rename(folder)
    return folder


def main():
    root = pathlib.Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", default=root / "build" / "bin" / "chat_tests")
    parser.add_argument("--cache", type=pathlib.Path,
                        default=pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "qiao-tests")
    flags = parser.parse_args()
    folder = fetch(flags.cache)
    sys.exit(subprocess.run([flags.tests, "--gtest_filter=PublishedTemplatesTest.*"],
                            env={**os.environ, "QIAO_PUBLISHED_TEMPLATES": str(folder)}).returncode)


if __name__ == "__main__":
    main()
