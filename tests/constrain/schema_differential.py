#!/usr/bin/env python3
"""Compares `qiao constrain` with the jsonschema wheel over random schemas and instances. Run by hand.

usage: schema_differential.py QIAO [--schemas N] [--seed S]      needs: pip install jsonschema
Prints each disagreement; exit status 1 where there is one. Instances are spelled at random: order of keys, whitespace,
escapes. Left out, as documented differences: duplicate keys, exponents with bounds, floats that only round to a multiple,
and Python's $, which also matches before a last line end.
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile

import jsonschema

NAMES = ["a", "b", "name", "x-y", "é", ""]
STRINGS = ["", "a", "b", "ab", "abc", "aaaa", "é", "\U0001F642x", "\t", "\"\\", "2024-02-30", "12"]
PATTERNS = ["^a", "b$", "^[a-z]+$", "a|é", "^.{2,3}$", "[^a]", "^$"]


def random_schema(rng, depth):
    if depth <= 0 or rng.random() < 0.1:
        return rng.choice([True, {}, {"type": "string"}, {"type": "integer"}, {"type": "null"}, {"type": "boolean"},
                           {"enum": [1, "a", None]}, {"const": rng.choice(["a", 1, 2.5, None, True, [1], {"a": 1}])}])
    kind = rng.choice(["object", "object", "array", "string", "number", "anyOf", "allOf", "oneOf", "not", "if", "types"])
    sub = lambda: random_schema(rng, depth - 1)
    schema = {}
    if kind == "object":
        if rng.random() < 0.8:
            schema["type"] = "object"
        schema["properties"] = {name: sub() for name in rng.sample(NAMES, rng.randrange(4))}
        if rng.random() < 0.5:
            schema["required"] = rng.sample(NAMES, rng.randrange(3))
        if rng.random() < 0.5:
            schema["additionalProperties"] = rng.choice([False, sub()])
        if rng.random() < 0.2:
            schema["patternProperties"] = {rng.choice(PATTERNS): sub()}
        if rng.random() < 0.2:
            schema["minProperties"] = rng.randrange(3)
        if rng.random() < 0.2:
            schema["maxProperties"] = rng.randrange(4)
        if rng.random() < 0.1:
            schema["propertyNames"] = {"pattern": rng.choice(PATTERNS)}
        if rng.random() < 0.1:
            schema["dependentRequired"] = {rng.choice(NAMES): [rng.choice(NAMES)]}
    elif kind == "array":
        if rng.random() < 0.8:
            schema["type"] = "array"
        if rng.random() < 0.4:
            schema["prefixItems"] = [sub() for _ in range(rng.randrange(1, 3))]
        if rng.random() < 0.7:
            schema["items"] = rng.choice([False, sub(), sub()])
        if rng.random() < 0.3:
            schema["minItems"] = rng.randrange(3)
        if rng.random() < 0.3:
            schema["maxItems"] = rng.randrange(4)
        if rng.random() < 0.2:
            schema["contains"] = sub()
    elif kind == "string":
        if rng.random() < 0.8:
            schema["type"] = "string"
        if rng.random() < 0.4:
            schema["pattern"] = rng.choice(PATTERNS)
        if rng.random() < 0.4:
            schema["minLength"] = rng.randrange(4)
        if rng.random() < 0.4:
            schema["maxLength"] = rng.randrange(5)
    elif kind == "number":
        schema["type"] = rng.choice(["number", "integer"])
        for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            if rng.random() < 0.3:
                schema[key] = rng.choice([-10, -1, 0, 1, 2.5, 10, 99, 100.25])
        if rng.random() < 0.2:
            schema["multipleOf"] = rng.choice([1, 2, 3, 0.5, 0.25, 10])
    elif kind == "types":
        schema["type"] = rng.sample(["null", "boolean", "number", "integer", "string", "array", "object"], 2)
    elif kind == "not":
        schema["not"] = sub()
    elif kind == "if":
        schema = {"if": sub(), "then": sub(), "else": sub()}
    else:
        schema[kind] = [sub() for _ in range(rng.randrange(1, 4))]
    return schema


def random_instance(rng, depth):
    kind = rng.choice(["null", "bool", "int", "float", "string", "string", "array", "object", "object"])
    if depth <= 0 and kind in ("array", "object"):
        kind = "string"
    if kind == "null":
        return None
    if kind == "bool":
        return rng.random() < 0.5
    if kind == "int":
        return rng.choice([0, 1, 2, 3, -1, -10, 9, 10, 11, 99, 100, 1000])
    if kind == "float":
        return rng.choice([0.5, 2.5, -1.5, 2.0, 100.25, 100.5, -0.25])
    if kind == "string":
        return rng.choice(STRINGS)
    if kind == "array":
        return [random_instance(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {name: random_instance(rng, depth - 1) for name in rng.sample(NAMES, rng.randrange(4))}


def near(rng, schema, depth):
    """An instance that has a fair chance to be valid."""
    if not isinstance(schema, dict) or depth <= 0 or rng.random() < 0.1:
        return random_instance(rng, 1)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return rng.choice(schema["enum"])
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return near(rng, rng.choice(schema[key]), depth)
    if "if" in schema:
        return near(rng, rng.choice([schema["if"], schema["then"], schema["else"]]), depth)
    kind = schema.get("type", rng.choice(["object", "array", "string"]))
    if isinstance(kind, list):
        kind = rng.choice(kind)
    if kind == "object":
        names = [n for n in schema.get("properties", {}) if rng.random() < 0.7] + schema.get("required", [])
        if rng.random() < 0.3:
            names.append(rng.choice(NAMES))
        rng.shuffle(names)
        return {n: near(rng, schema.get("properties", {}).get(n, schema.get("additionalProperties")), depth - 1) for n in names}
    if kind == "array":
        prefix = [near(rng, s, depth - 1) for s in schema.get("prefixItems", [])]
        more = [near(rng, schema.get("items"), depth - 1) for _ in range(rng.randrange(3))]
        return prefix + more
    return {"null": lambda: None, "boolean": lambda: True, "string": lambda: rng.choice(STRINGS),
            "integer": lambda: rng.choice([0, 1, -1, 10, 6, 99]),
            "number": lambda: rng.choice([0, 1.5, -1, 10, 0.25, 100.25])}[kind]()


def spell(rng, value):
    space = lambda: rng.choice(["", "", " ", "\n\t"])
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
        if rng.random() < 0.2 and value and ord(value[0]) < 128:
            text = f'"\\u{ord(value[0]):04x}' + json.dumps(value[1:])[1:]
        return text
    if isinstance(value, list):
        return "[" + space() + ",".join(space() + spell(rng, v) + space() for v in value) + "]"
    if isinstance(value, dict):
        return "{" + space() + ",".join(space() + spell(rng, k) + space() + ":" + space() + spell(rng, v) + space()
                                        for k, v in value.items()) + "}"
    return json.dumps(value)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("qiao")
    parser.add_argument("--schemas", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    compared = accepted = unsupported = unsatisfiable = wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for number in range(args.schemas):
            schema = random_schema(rng, 3)
            (folder / "schema.json").write_text(json.dumps(schema))
            instances = [near(rng, schema, 4) if rng.random() < 0.7 else random_instance(rng, 3) for _ in range(40)]
            files = []
            for i, instance in enumerate(instances):
                files.append(folder / f"{i}.json")
                files[-1].write_text(spell(rng, instance), encoding="utf-8")
            run = subprocess.run([args.qiao, "constrain", "--json", "--schema", folder / "schema.json", *files],
                                 capture_output=True, text=True, timeout=60)
            validator = jsonschema.Draft202012Validator(schema)
            valid = [validator.is_valid(instance) for instance in instances]
            if run.returncode == 2:
                unsupported += "not supported" in run.stderr or "twice" in run.stderr
                if "no JSON value" in run.stderr:
                    unsatisfiable += 1
                    if any(valid):
                        wrong += 1
                        print(f"schema {number} is said to be empty: {json.dumps(schema)}: {instances[valid.index(True)]!r}")
                elif "not supported" not in run.stderr:
                    print(f"schema {number}: {run.stderr.strip()}")
                continue
            if run.returncode not in (0, 1):
                wrong += 1
                print(f"schema {number}: exit {run.returncode}: {run.stderr}: {json.dumps(schema)}")
                continue
            for file, instance, good, result in zip(files, instances, valid, json.loads(run.stdout)):
                compared += 1
                accepted += good
                if result["accepted"] != good:
                    wrong += 1
                    print(f"schema {number}: {json.dumps(schema, ensure_ascii=False)}\n  {file.read_text(encoding='utf-8')!r}: "
                          f"jsonschema says {good}, qiao {result}")
    print(f"{compared} instances compared ({accepted} valid), {unsupported} schemas not supported, "
          f"{unsatisfiable} empty, {wrong} disagreements")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
