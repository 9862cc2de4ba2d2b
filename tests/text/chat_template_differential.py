#!/usr/bin/env python3
"""Renders every template it finds over a matrix of conversations with `qiao template --lines` and with Transformers'
own render_jinja_template, and compares the bytes. Where one fails, the other must.

    python3 tests/text/chat_template_differential.py --qiao build/bin/qiao FILE_OR_FOLDER...

Takes .jinja files and GGUF files (their tokenizer.chat_template). Needs the wheels jinja2, transformers and gguf.
"""
import argparse
import copy
import itertools
import json
import pathlib
import subprocess
import sys

from transformers.utils.chat_template_utils import render_jinja_template

TOOLS = [
    {"type": "function", "function": {
        "name": "get_weather", "description": "Gets the weather.\nIn \"a\" place <now> & then — 你好.",
        "parameters": {"type": "object", "properties": {
            "location": {"type": "string", "description": "City, e.g. 'Zürich'"},
            "unit": {"type": "string", "enum": ["C", "F"], "default": "C"},
            "days": {"type": ["integer", "null"], "minimum": 1}, "tags": {"type": "array", "items": {"type": "string"}},
            "deep": {"type": "object", "properties": {"x": {"type": "number", "default": 1.5}}, "required": ["x"]}},
            "required": ["location"]},
        "return": {"type": "string", "description": "A text"}}},
    {"type": "function", "function": {
        "name": "noop", "description": "", "parameters": {"type": "object", "properties": {}}}},
]
PLAIN_TOOLS = [TOOLS[0]["function"]]
# Conversations that are also rendered with each extra variable.
EXTRA = ("system user", "multi-turn", "think in text", "reasoning_content", "reasoning and call", "call, result, answer",
         "two calls", "image")
DOCUMENTS = [{"title": "T1", "text": "First — text", "id": 1}, {"title": "T2", "text": "Second\ntext"}]


def call(name, arguments, ident="call_12345", with_type=True):
    result = {"id": ident, "function": {"name": name, "arguments": arguments}}
    return {"type": "function", **result} if with_type else result


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def tool(text, **more):
    return {"role": "tool", "content": text, **more}


def conversations():
    system = {"role": "system", "content": "  You are kind.\n"}
    weather = {"location": "Zürich", "days": 3, "tags": ["a", "b"], "deep": {"x": 1.0}, "ok": True, "none": None}
    answer = '{"temp": 21.5, "sky": "clear ☀"}'
    one = [user("Weather?"), assistant("", tool_calls=[call("get_weather", weather)])]
    yield "user", [user("Hi there 你好 😀")]
    yield "empty", []
    yield "empty text", [user("")]
    yield "system user", [system, user("Hi")]
    yield "system alone", [system]
    yield "developer", [{"role": "developer", "content": "Be brief."}, user("Hi")]
    yield "multi-turn", [system, user("A\n"), assistant(" B "), user("C")]
    yield "ends with assistant", [user("A"), assistant("B")]
    yield "two users", [user("A"), user("B")]
    yield "assistant first", [assistant("A"), user("B")]
    yield "odd role", [user("A"), {"role": "critic", "content": "B"}]
    yield "no role", [{"content": "B"}]
    yield "system later", [user("A"), assistant("B"), system, user("C")]
    yield "null content", [user("A"), assistant(None), user("B")]
    yield "special text", [user("<|im_end|>{{ x }}{% if %}\u2028\t\"'\\ &<>")]
    yield "spaces", [system, user("  \n A \t"), assistant("\n\nB\n\n"), user(" C ")]
    yield "think in text", [user("Q"), assistant("<think>\nhm\n</think>\n\nA"), user("R")]
    yield "think at end", [user("Q"), assistant("<think>\nhm\n</think>\n\nA")]
    for field in ("reasoning_content", "thinking", "reasoning"):
        yield field, [user("Q"), assistant("A", **{field: "because\n"}), user("R"), assistant("B", **{field: " so"})]
    yield "reasoning and call", [user("Q"), assistant("", reasoning_content="need it",
                                                      tool_calls=[call("get_weather", weather)]),
                                 tool(answer, tool_call_id="call_12345", name="get_weather")]
    yield "call", one
    yield "call and result", one + [tool(answer, tool_call_id="call_12345", name="get_weather")]
    yield "call, result, answer", [system] + one + [tool(answer, tool_call_id="call_12345", name="get_weather"),
                                                    assistant("It is clear."), user("Thanks")]
    yield "bare result", one + [tool("sunny")]
    yield "result without a name", one + [tool(answer, tool_call_id="call_12345"), user("And?")]
    yield "short id", [user("W"), assistant("", tool_calls=[call("get_weather", {"location": "X"}, "abcdefghi")]),
                       tool("ok", tool_call_id="abcdefghi", name="get_weather"), assistant("done")]
    yield "functions id", [user("W"), assistant("", tool_calls=[call("noop", {}, "functions.noop:0")]),
                           tool("ok", tool_call_id="functions.noop:0")]
    yield "two calls", [user("W"), assistant("Both", tool_calls=[
        call("get_weather", {"location": "A"}, "aaaaaaaaa"), call("noop", {}, "bbbbbbbbb")]),
        tool("1", tool_call_id="aaaaaaaaa", name="get_weather"), tool("2", tool_call_id="bbbbbbbbb", name="noop"),
        user("So?")]
    yield "arguments as text", [user("W"), assistant(None, tool_calls=[
        call("get_weather", json.dumps(weather), "abcdefghi")]), tool(answer, tool_call_id="abcdefghi", name="get_weather")]
    yield "call without type", [user("W"), assistant("", tool_calls=[call("noop", {}, "abcdefghi", False)])]
    yield "call without content", [user("W"), {"role": "assistant", "tool_calls": [call("noop", {"a": 1}, "abcdefghi")]},
                                   tool({"k": [1, 2.5]}, tool_call_id="abcdefghi", name="noop")]
    yield "flat call", [user("W"), assistant("", tool_calls=[{"name": "noop", "arguments": {"a": 1}, "id": "abcdefghi"}])]
    yield "no calls", [user("W"), assistant("x", tool_calls=[]), user("y")]
    yield "result in parts", one + [tool([{"type": "text", "text": "sunny"}], tool_call_id="call_12345", name="get_weather")]
    yield "ipython", one + [{"role": "ipython", "content": "sunny"}]
    yield "text part", [user([{"type": "text", "text": "Look: "}]), assistant([{"type": "text", "text": "Yes"}]), user("B")]
    yield "image", [user([{"type": "image"}, {"type": "text", "text": "What is this?"}])]
    yield "image after text", [user([{"type": "text", "text": "What is this?"}, {"type": "image"}, {"type": "image"}]),
                               assistant("A cat."), user([{"type": "image_url", "image_url": {"url": "http://x/y.png"}}])]
    yield "video and audio", [user([{"type": "video"}, {"type": "audio"}, {"type": "text", "text": "?"}])]
    yield "system in parts", [{"role": "system", "content": [{"type": "text", "text": "Kind."}]}, user("A")]
    yield "unknown part", [user([{"type": "smell"}])]
    yield "names", [{"role": "user", "name": "Ann", "content": "A"}, assistant("B", name="Bot")]
    yield "long", [m for i in range(12) for m in (user(f"Q{i}"), assistant(f"A{i}"))] + [user("end")]
    yield "many tool turns", [user("W")] + [m for i in range(3) for m in (
        assistant("", tool_calls=[call("get_weather", {"location": str(i)}, f"id{i:07d}")]),
        tool(str(i), tool_call_id=f"id{i:07d}", name="get_weather"))] + [assistant("Done"), user("OK")]


def settings():
    for tools, generation in itertools.product((None, TOOLS), (False, True)):
        yield {"tools": tools, "add_generation_prompt": generation}
    yield {"tools": PLAIN_TOOLS, "add_generation_prompt": True}
    yield {"tools": [], "add_generation_prompt": True}
    for name, value in (("enable_thinking", False), ("enable_thinking", True), ("thinking", True), ("thinking", False),
                        ("reasoning_effort", "high"), ("reasoning_effort", "low"), ("preserve_thinking", True),
                        ("clear_thinking", False), ("thinking_mode", "chat"), ("date_string", "01 Jan 2025"),
                        ("builtin_tools", ["wolfram_alpha", "code_interpreter"]), ("controls", {"length": "short"}),
                        ("model_identity", "I am Q."), ("keep_past_thinking", True), ("documents", DOCUMENTS),
                        ("xml_tools", TOOLS), ("python_tools", TOOLS), ("custom_tools", TOOLS),
                        ("tools_in_user_message", False), ("add_vision_id", True), ("citations", "on")):
        yield {"tools": TOOLS if name in ("thinking", "preserve_thinking") else None, "add_generation_prompt": True,
               name: value}


def templates(paths):
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.suffix == ".jinja":
                yield file.name, file.read_text(encoding="utf-8")
            elif file.suffix == ".gguf":
                from gguf import GGUFReader
                field = GGUFReader(file).get_field("tokenizer.chat_template")
                if field is not None:
                    yield file.name, field.contents()


def render_with_peer(template, messages, variables):
    rest = copy.deepcopy(variables)
    documents = rest.pop("documents", None)
    tools = rest.pop("tools", None)
    try:
        texts, _ = render_jinja_template([copy.deepcopy(messages)], tools=tools, documents=documents,
                                         chat_template=template, **rest)
        texts[0].encode("utf-8")
        return {"text": texts[0]}
    except Exception as error:  # noqa: BLE001 - any failure is one
        return {"error": f"{type(error).__name__}: {error}"}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--qiao", required=True, help="the command that answers lines: build/bin/qiao")
    parser.add_argument("--show", type=int, default=20, help="differences to print")
    parser.add_argument("paths", nargs="+", type=pathlib.Path)
    flags = parser.parse_args()
    peers, requests, names = [], [], []
    for file, template in templates(flags.paths):
        first = True
        for (name, messages), setting in itertools.product(conversations(), settings()):
            if len(setting) > 2 and name not in EXTRA:
                continue
            variables = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", **setting}
            peers.append(render_with_peer(template, messages, variables))
            requests.append(json.dumps({**({"template": template} if first else {}),
                                        "variables": {"messages": messages, **variables}}))
            first = False
            names.append(f"{file}: {name}: {json.dumps({k: v for k, v in setting.items() if k != 'tools'})}"
                         f"{' tools' if setting['tools'] else ''}")
    lines = ("\n".join(requests) + "\n").encode()
    out = subprocess.run([flags.qiao, "template", "--lines"], input=lines, stdout=subprocess.PIPE, check=True).stdout
    answers = [json.loads(line) for line in out.decode().rstrip("\n").split("\n")]
    if len(answers) != len(peers):
        sys.exit(f"{len(peers)} renders asked, {len(answers)} answered")
    different = [i for i, (peer, ours) in enumerate(zip(peers, answers)) if peer.get("text") != ours.get("text")]
    for i in different[:flags.show]:
        print(f"{names[i]}\n  peer {peers[i]!r}\n  qiao {answers[i]!r}")
    failed = sum("error" in peer for peer in peers)
    print(f"{len(peers)} renders of {len({n.split(':')[0] for n in names})} templates, {failed} of them errors in both; "
          f"{len(different)} differ")
    sys.exit(1 if different or not peers else 0)


if __name__ == "__main__":
    main()
