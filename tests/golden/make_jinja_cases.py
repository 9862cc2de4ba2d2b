#!/usr/bin/env python3
"""Writes jinja_cases.json: small templates and what jinja2, set up as Transformers sets it up, makes of them.

    make_jinja_cases.py FOLDER      writes FOLDER/jinja_cases.json

Needs the wheels jinja2 and transformers. A case whose rendering raises has "error": true in place of "expected".
"""
import json
import pathlib
import sys

from transformers.utils.chat_template_utils import _compile_jinja_template

HERE = pathlib.Path(__file__).resolve().parent

VARIABLES = {
    "name": "World", "empty": "", "n": 7, "neg": -3, "zero": 0, "f": 2.5, "whole": 3.0, "big": 1e22, "small": 1.5e-7,
    "yes": True, "no": False, "nothing": None, "text": "  Hello, World\n", "uni": "Straße Ünïcödé 你好 😀 ǅ ΑΣ",
    "lines": "one\ntwo\r\nthree\n\nfive", "l": [3, 1, 2], "words": ["banana", "Apple", "cherry", "apple"],
    "mixed": [1, "a", None, True, 2.5, [1, "x'y"], {"k": "v\"w"}], "d": {"b": 1, "a": 2, "C": 3},
    "nested": {"x": {"y": [10, 20, {"z": "deep"}]}}, "tricky": {"items": "I", "get": "G", "update": "U", "0": "zero"},
    "users": [{"name": "Ann", "age": 30, "city": "Oslo"}, {"name": "bob", "age": 25, "city": "Rome"},
              {"name": "Cy", "age": 30, "city": "oslo"}, {"name": "Di", "age": None}],
    "tree": [{"v": 1, "c": [{"v": 2, "c": [{"v": 3, "c": []}]}, {"v": 4, "c": []}]}, {"v": 5, "c": []}],
    "html": "<b>\"R&D\" 'x'</b>", "quote": "it's \"quoted\"", "ctrl": "a\tb\u0007\u00a0\u200b\u2028é",
    "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"},
                 {"role": "assistant", "content": "Yo", "tool_calls": [
                     {"id": "1", "function": {"name": "f", "arguments": {"a": 1, "b": [True, None]}}}]},
                 {"role": "user", "content": [{"type": "text", "text": "see"}, {"type": "image"}]}],
    "schema": {"type": "object", "properties": {"q": {"type": "string", "description": "ü<&>'"}}, "required": []},
    "uint": 18446744073709551615, "path": "a/b c?d=é",
}


def expressions():
    """One a line: each becomes {{ … }}."""
    return (HERE / "jinja_expressions.txt").read_text().removesuffix("\n").split("\n")


def templates():
    """Separated by lines of ====."""
    return (HERE / "jinja_templates.txt").read_text().removesuffix("\n").split("\n====\n")


def main():
    sources = [(f"{{{{ {e} }}}}") for e in expressions()] + templates()
    # What Qiao refuses by design is not compared, nor a slice that jinja2 folds before it can fail.
    refused = ("{% include", ".encode(", "'hello'['a':]")
    cases = []
    for source in dict.fromkeys(sources):
        if any(part in source for part in refused):
            continue
        try:
            expected = _compile_jinja_template(source).render(**VARIABLES)
            if " at 0x" not in expected:  # the address of an object
                cases.append({"template": source, "expected": expected})
        except Exception:  # noqa: BLE001 - whatever jinja2 or Python raises is an error of the template
            cases.append({"template": source, "error": True})
    text = json.dumps({"variables": VARIABLES, "cases": cases}, ensure_ascii=False, indent=1)
    (pathlib.Path(sys.argv[1]) / "jinja_cases.json").write_text(text + "\n")
    print(f"{len(cases)} cases, {sum('error' in c for c in cases)} of them errors", file=sys.stderr)


if __name__ == "__main__":
    main()
