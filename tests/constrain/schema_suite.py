#!/usr/bin/env python3
"""Holds `qiao constrain` to a checkout of JSON-Schema-Test-Suite or of jsonschemabench's maskbench data.

usage: schema_suite.py QIAO FOLDER [--draft draft2020-12 …] [--optional] [--limit N] [--verbose]
FOLDER is the suite's root (it has tests/), or a folder of maskbench files (each {"schema", "tests"}).
Each schema is one call with a file a test: exit code 2 means that Qiao refuses the schema, and its line must name a keyword.
Prints how many tests were judged right and wrong, and which keywords were refused. Exit code 1 if any was wrong.
"""

import argparse
import collections
import concurrent.futures
import json
import pathlib
import random
import re
import subprocess
import sys
import tempfile

DIALECTS = {"draft4": "http://json-schema.org/draft-04/schema#", "draft6": "http://json-schema.org/draft-06/schema#",
            "draft7": "http://json-schema.org/draft-07/schema#"}
# The suite's own default: in these drafts "format" alone says nothing. Qiao always holds texts to a format.
ANNOTATED_FORMAT = re.compile("annotation")


def suite_cases(root, draft, optional):
    folder = root / "tests" / draft
    files = sorted(folder.glob("*.json"))
    if optional:
        files += sorted(folder.glob("optional/**/*.json"))
    for file in files:
        for group in json.loads(file.read_text()):
            schema = group["schema"]
            if draft in DIALECTS and isinstance(schema, dict) and "$schema" not in schema:
                schema = {"$schema": DIALECTS[draft], **schema}
            tests = [(t["description"], t["data"], t["valid"]) for t in group["tests"]
                     if not (file.stem == "format" and ANNOTATED_FORMAT.search(t["description"]))]
            yield f"{draft}/{file.stem}: {group['description']}", schema, tests


def bench_cases(root, limit, seed):
    files = sorted(root.glob("**/*.json"))
    if limit and len(files) > limit:
        files = random.Random(seed).sample(files, limit)
    for file in files:
        case = json.loads(file.read_text())
        if isinstance(case, dict) and "schema" in case and "tests" in case:
            yield file.name, case["schema"], [(f"test {i}", t["data"], t["valid"]) for i, t in enumerate(case["tests"])]


def judge(qiao, case, timeout):
    name, schema, tests = case
    if not tests:
        return case, "empty", None
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "schema.json").write_text(json.dumps(schema))
        files = []
        for i, (_, data, _) in enumerate(tests):
            file = folder / f"{i}.json"
            file.write_text(json.dumps(data))
            files.append(str(file))
        try:
            run = subprocess.run([qiao, "constrain", "--json", "--schema", str(folder / "schema.json"), *files],
                                 capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            return case, "slow", None
        if run.returncode == 2:
            return case, "refused", run.stderr.strip()
        if run.returncode not in (0, 1) or not run.stdout:
            return case, "failed", run.stderr.strip()
        return case, "judged", [r["accepted"] for r in json.loads(run.stdout)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("qiao")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--draft", nargs="*", default=["draft4", "draft6", "draft7", "draft2019-09", "draft2020-12"])
    parser.add_argument("--optional", action="store_true")
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    if (args.folder / "tests").is_dir():
        cases = [case for draft in args.draft for case in suite_cases(args.folder, draft, args.optional)]
    else:
        cases = list(bench_cases(args.folder, args.limit, args.seed))
    counts, refused = collections.Counter(), collections.Counter()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for case, outcome, result in pool.map(lambda c: judge(args.qiao, c, 30), cases):
            counts[f"schemas {outcome}"] += 1
            if outcome == "refused":
                counts["tests of refused schemas"] += len(case[2])
                keyword = re.search(r'keyword "([^"]*)"', result)
                refused[keyword.group(1) if keyword else result.split(": ", 1)[-1][:110]] += 1
                if args.verbose:
                    print("refused:", case[0], "|", result)
            elif outcome in ("failed", "slow"):
                print(f"{outcome}: {case[0]} | {result}")
            elif outcome == "judged":
                for (description, data, valid), accepted in zip(case[2], result):
                    counts["right" if accepted == valid else "WRONG"] += 1
                    if accepted != valid:
                        print(f"wrong: {case[0]} | {description} | expected {'valid' if valid else 'invalid'} | "
                              f"{json.dumps(case[1])[:300]} | {json.dumps(data)[:120]}")
    for name, count in sorted(counts.items()):
        print(f"{name:<28} {count}")
    for keyword, count in refused.most_common(40):
        print(f"  refused {count:>5}  {keyword}")
    return 1 if counts["WRONG"] or counts["schemas failed"] or counts["schemas slow"] else 0


if __name__ == "__main__":
    sys.exit(main())
