#!/usr/bin/env python3
"""Calls of tools with the official openai client, in every form that templates write them, over the tiny model.

  QIAO_BINARY=build/bin/qiao python tests/serve/tools_client_test.py
"""
import json
import unittest

import jsonschema
import openai
import pydantic
from tiny_model import TEMPLATES, TinyModel

PARAMETERS = {"type": "object", "properties": {
    "size": {"enum": ["small", "large"]}, "count": {"type": "integer", "minimum": 1, "maximum": 99},
    "fast": {"type": "boolean"}}, "required": ["size", "count"], "additionalProperties": False}
TOOLS = [{"type": "function", "function": {"name": "order", "description": "Orders.", "parameters": PARAMETERS}},
         {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}]
SCHEMAS = {"order": PARAMETERS, "now": {"type": "object", "maxProperties": 0}}
ASK = [{"role": "user", "content": "Two large ones."}]
FORMS = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
SINGLE = {"llama3"}  # its template takes one call


class FormsTest(unittest.TestCase):
    """One server a form: what it is asked for comes, plain as streamed."""

    @classmethod
    def setUpClass(cls):
        cls.model = TinyModel()

    @classmethod
    def tearDownClass(cls):
        cls.model.close()

    def check(self, message, finish, names=("order", "now")):
        self.assertEqual(finish, "tool_calls")
        self.assertTrue(message.tool_calls)
        self.assertFalse(message.content)
        for call in message.tool_calls:
            self.assertEqual(call.type, "function")
            self.assertTrue(call.id.startswith("call_"))
            self.assertIn(call.function.name, names)
            jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
        self.assertEqual(len({call.id for call in message.tool_calls}), len(message.tool_calls))

    def streamed(self, client, **request):
        """The message and finish_reason that a client puts together, the order of its deltas checked."""
        calls, content, finish = [], "", None
        for chunk in client.chat.completions.create(model="tiny", stream=True, **request):
            if not chunk.choices:
                continue
            delta = chunk.choices[0].delta
            content += delta.content or ""
            for part in delta.tool_calls or []:
                if part.index == len(calls):
                    self.assertTrue(part.id and part.function.name)
                    self.assertEqual((part.type, part.function.arguments), ("function", ""))
                    calls.append([part.function.name, ""])
                else:
                    self.assertEqual(part.index, len(calls) - 1)
                    self.assertIsNone(part.id)
                    calls[-1][1] += part.function.arguments
            finish = chunk.choices[0].finish_reason or finish
        return content, calls, finish

    def test_each_form(self):
        for form in FORMS:
            served = self.model.serve(template=form)
            client = served.client()
            try:
                for seed in range(3):
                    with self.subTest(form=form, seed=seed):
                        request = dict(messages=ASK, tools=TOOLS, max_tokens=400, temperature=1, seed=seed,
                                       tool_choice="required", parallel_tool_calls=False)
                        plain = client.chat.completions.create(model="tiny", **request)
                        choice = plain.choices[0]
                        if "think" in (TEMPLATES / f"{form}.jinja").read_text() and choice.finish_reason == "length":
                            continue  # its thoughts did not end
                        self.check(choice.message, choice.finish_reason)
                        self.assertEqual(len(choice.message.tool_calls), 1)
                        content, calls, finish = self.streamed(client, **request)
                        self.assertEqual((content, finish), ("", "tool_calls"))
                        self.assertEqual(calls, [[c.function.name, c.function.arguments] for c in choice.message.tool_calls])
                        # The answer and its results go back into the next prompt.
                        messages = ASK + [choice.message.model_dump(exclude_none=True)] + [
                            {"role": "tool", "tool_call_id": c.id, "content": "done"} for c in choice.message.tool_calls]
                        after = client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS, max_tokens=4)
                        self.assertGreater(after.usage.prompt_tokens, plain.usage.prompt_tokens)
                with self.subTest(form=form, choice="named"):
                    request["tool_choice"] = {"type": "function", "function": {"name": "order"}}
                    choice = client.chat.completions.create(model="tiny", **request).choices[0]
                    if choice.finish_reason != "length":
                        self.check(choice.message, choice.finish_reason, ("order",))
                with self.subTest(form=form, choice="auto"):
                    answers = client.chat.completions.create(
                        model="tiny", messages=ASK, tools=TOOLS, max_tokens=60, temperature=1, seed=5, n=8)
                    for choice in answers.choices:
                        for call in choice.message.tool_calls or []:
                            if choice.finish_reason == "tool_calls":
                                jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
                with self.subTest(form=form, choice="none"):
                    choice = client.chat.completions.create(
                        model="tiny", messages=ASK, tools=TOOLS, tool_choice="none", max_tokens=8).choices[0]
                    self.assertIsNone(choice.message.tool_calls)
            finally:
                self.assertEqual(served.stop(), 0)


class ToolFieldsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = TinyModel()
        cls.served = cls.model.serve(template="hermes")
        cls.client = cls.served.client()

    @classmethod
    def tearDownClass(cls):
        code = cls.served.stop()
        cls.model.close()
        if code != 0:
            raise AssertionError("the server did not end with 0")

    def refused(self, param, *parts, **change):
        body = {"messages": ASK, "max_tokens": 2, **change}
        status, _, data = self.served.request("POST", "/v1/chat/completions", body)
        error = json.loads(data)["error"]
        self.assertEqual((status, error["param"]), (400, param), error)
        for part in (param, *parts):
            self.assertIn(part, error["message"])

    def tool(self, **function):
        return [{"type": "function", "function": {"name": "f", **function}}]

    def test_bad_tools(self):
        self.refused("tools", tools="x")
        self.refused("tools[0]", tools=["x"])
        self.refused("tools[0].type", tools=[{"type": "retrieval"}])
        self.refused("tools[0].function", tools=[{"type": "function"}])
        for name in ("", "two words", "a.b", "ü", "x" * 65, "</tool_call>"):
            self.refused("tools[0].function.name", tools=self.tool(name=name))
        self.refused("tools[1].function.name", "two", tools=self.tool() * 2)
        self.refused("tools[0].function.parameters", tools=self.tool(parameters=[]))
        self.refused("tools[0].function.parameters", "uniqueItems",
                     tools=self.tool(parameters={"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}))
        self.refused("tools[0].function.strict", tools=self.tool(strict="yes"))
        self.refused("tools[0].function.colour", tools=self.tool(colour=1))
        many = [{"type": "function", "function": {"name": f"f{i}"}} for i in range(3000)]
        self.refused("tools", "3000", "512", tools=many)

    def test_bad_choices(self):
        self.refused("tool_choice", tools=TOOLS, tool_choice="always")
        self.refused("tool_choice", tool_choice="required")
        self.refused("tool_choice.type", tools=TOOLS, tool_choice={"type": "mcp"})
        self.refused("tool_choice.function.name", "nothing", tools=TOOLS,
                     tool_choice={"type": "function", "function": {"name": "nothing"}})
        self.refused("parallel_tool_calls", tools=TOOLS, parallel_tool_calls="no")
        self.refused("tool_choice", "response_format", tools=TOOLS, tool_choice="required", response_format={"type": "json_object"})
        self.refused("functions", functions=[{"name": "f"}])
        self.refused("function_call", function_call="auto")

    def test_bad_messages(self):
        def call(**change):
            return {"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "now", "arguments": "{}"}, **change}]}

        self.refused("messages[1].tool_call_id", messages=ASK + [{"role": "tool", "content": "x"}])
        self.refused("messages[1].tool_calls[0].id", messages=ASK + [call(id=None)])
        self.refused("messages[1].tool_calls[0].type", messages=ASK + [call(type="custom")])
        self.refused("messages[1].tool_calls[0].function", messages=ASK + [call(function=None)])
        self.refused("messages[1].tool_calls[0].function.arguments", messages=ASK + [call(function={"name": "f", "arguments": "{"})])
        self.refused("messages[1].tool_calls[0].function.arguments", messages=ASK + [call(function={"name": "f", "arguments": "[]"})])
        self.refused("messages[1].tool_calls", messages=ASK + [{"role": "assistant", "tool_calls": "x"}])
        self.refused("messages[1].role", messages=ASK + [{"role": "function", "name": "f", "content": "x"}])
        self.refused("messages[1].function_call", messages=ASK + [{"role": "assistant", "content": "", "function_call": {"name": "f"}}])

    def test_the_prompt_shows_the_tools(self):
        def tokens(**more):
            return self.client.chat.completions.create(model="tiny", messages=ASK, max_tokens=1, **more).usage.prompt_tokens

        self.assertGreater(tokens(tools=TOOLS), tokens() + 100)
        self.assertEqual(tokens(tools=TOOLS, tool_choice="none"), tokens())

    def test_many_tools(self):
        many = [{"type": "function", "function": {"name": f"f{i}"}} for i in range(40)]
        answer = self.client.chat.completions.create(model="tiny", messages=ASK, tools=many, tool_choice="required",
                                                     parallel_tool_calls=False, temperature=1, seed=1, max_tokens=600,
                                                     extra_body={"chat_template_kwargs": {"enable_thinking": False}})
        self.assertEqual(answer.choices[0].finish_reason, "tool_calls")
        self.assertEqual(answer.choices[0].message.tool_calls[0].function.arguments, "{}")

    def test_the_clients_own_helpers(self):
        class Order(pydantic.BaseModel):
            size: str = pydantic.Field(json_schema_extra={"enum": ["small", "large"]})
            fast: bool

        tool = openai.pydantic_function_tool(Order, name="order")
        request = dict(model="tiny", messages=ASK, tools=[tool], tool_choice="required", parallel_tool_calls=False, temperature=1,
                       seed=2, max_tokens=400, extra_body={"chat_template_kwargs": {"enable_thinking": False}})
        parsed = self.client.chat.completions.parse(**request).choices[0].message.tool_calls[0].function.parsed_arguments
        self.assertIsInstance(parsed, Order)
        with self.client.chat.completions.stream(**request) as stream:
            for _ in stream:
                pass
            self.assertEqual(stream.get_final_completion().choices[0].message.tool_calls[0].function.parsed_arguments, parsed)

    def test_reasoning_stands_apart(self):
        kwargs = {"chat_template_kwargs": {"enable_thinking": True}}
        request = dict(model="tiny", messages=ASK, max_tokens=30, temperature=0)
        answer = self.client.chat.completions.create(**request, extra_body={**kwargs, "ignore_eos": True})
        message = answer.choices[0].message
        self.assertTrue(message.reasoning_content)
        self.assertEqual(message.content, "")
        self.assertGreater(answer.usage.completion_tokens_details.reasoning_tokens, 0)
        streamed = ""
        for chunk in self.client.chat.completions.create(**request, stream=True, extra_body={**kwargs, "ignore_eos": True}):
            delta = chunk.choices[0].delta
            self.assertFalse(delta.content)
            streamed += getattr(delta, "reasoning_content", None) or ""
        self.assertEqual(streamed, message.reasoning_content)


if __name__ == "__main__":
    unittest.main()
