#!/usr/bin/env python3
"""Structured output with the official openai client: every answer that ends with stop is what was asked for.

  QIAO_BINARY=build/bin/qiao python tests/serve/structured_client_test.py
"""
import json
import random
import unittest

import jsonschema
import pydantic
from tiny_model import TinyModel

ASK = [{"role": "user", "content": "An answer, please."}]


def random_schema(rng, depth=0):
    """A schema of the kinds that people write."""
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const"]
    if depth < 3:
        kinds += ["object", "object", "array", "anyOf"]
    kind = rng.choice(kinds)
    if kind == "string":
        return rng.choice([{"type": "string", "maxLength": 8}, {"type": "string", "minLength": 2, "maxLength": 5},
                           {"type": "string", "pattern": "^[a-c]{1,4}$"}, {"type": "string", "format": "date"}])
    if kind == "integer":
        return rng.choice([{"type": "integer", "minimum": -5, "maximum": 120}, {"type": "integer", "exclusiveMinimum": 0, "maximum": 9}])
    if kind == "number":
        return {"type": "number", "minimum": 0, "maximum": 1}
    if kind == "enum":
        return {"enum": rng.sample(["a", "b\"", 1, 2.5, None, True, "ü"], 3)}
    if kind == "const":
        return {"const": rng.choice(["x", 7, [1, "y"], {"k": False}])}
    if kind == "array":
        least = rng.randrange(3)
        return {"type": "array", "items": random_schema(rng, depth + 1), "minItems": least, "maxItems": least + 2}
    if kind == "anyOf":
        return {"anyOf": [random_schema(rng, depth + 1) for _ in range(2)]}
    if kind == "object":
        names = rng.sample(["id", "name", "a b", "größe", "x\"y", "tags"], rng.randrange(1, 4))
        return {"type": "object", "properties": {name: random_schema(rng, depth + 1) for name in names},
                "required": rng.sample(names, rng.randrange(len(names) + 1)), "additionalProperties": False}
    return {"type": kind}


class StructuredCase(unittest.TestCase):
    template = None

    @classmethod
    def setUpClass(cls):
        cls.model = TinyModel()
        cls.served = cls.model.serve(template=cls.template)
        cls.client = cls.served.client()

    @classmethod
    def tearDownClass(cls):
        code = cls.served.stop()
        cls.model.close()
        if code != 0:
            raise AssertionError("the server did not end with 0")

    def chat(self, seed=0, **more):
        answer = self.client.chat.completions.create(
            **{**dict(model="tiny", messages=ASK, max_tokens=800, temperature=1, seed=seed), **more})
        return answer.choices[0].finish_reason, answer.choices[0].message.content

    def refused(self, param, *parts, path="/v1/chat/completions", expected=400, **change):
        body = {"max_tokens": 2, **({"messages": ASK} if "chat" in path else {"prompt": "a"}), **change}
        status, _, data = self.served.request("POST", path, body)
        error = json.loads(data)["error"]
        self.assertEqual((status, error["param"]), (expected, param), error)
        for part in (param, *parts):
            self.assertIn(part, error["message"])


class StructuredTest(StructuredCase):
    def test_generated_schemas(self):
        ended = 0
        for number in range(60):
            schema = random_schema(random.Random(number))
            for seed in range(2):
                with self.subTest(schema=schema, seed=seed):
                    strict = bool(number % 2)
                    finish, text = self.chat(seed, response_format={
                        "type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": strict}})
                    if finish == "stop":
                        ended += 1
                        jsonschema.validate(json.loads(text), schema,
                                            format_checker=jsonschema.FormatChecker())
        self.assertGreaterEqual(ended, 80)

    def test_streamed_as_plain(self):
        format = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "array", "items": {"type": "integer", "maximum": 9, "minimum": 0}, "maxItems": 5}}}
        plain = self.chat(3, response_format=format)
        chunks = self.client.chat.completions.create(model="tiny", messages=ASK, max_tokens=800, temperature=1, seed=3,
                                                     response_format=format, stream=True)
        self.assertEqual("".join(chunk.choices[0].delta.content or "" for chunk in chunks), plain[1])

    def test_json_object(self):
        for seed in range(6):
            finish, text = self.chat(seed, response_format={"type": "json_object"}, max_tokens=300)
            self.assertTrue(text.startswith("{"))
            if finish == "stop":
                self.assertIsInstance(json.loads(text), dict)

    def test_every_spelling(self):
        schema = {"enum": ["yes", "no"]}
        grammar = 'root ::= "ab" | "cd"'
        for extra, allowed in [
                ({"guided_json": schema}, ['"yes"', '"no"']), ({"guided_json": json.dumps(schema)}, ['"yes"', '"no"']),
                ({"json_schema": schema}, ['"yes"', '"no"']), ({"structured_outputs": {"json": schema}}, ['"yes"', '"no"']),
                ({"response_format": {"type": "json_object", "schema": schema}}, ['"yes"', '"no"']),
                ({"guided_choice": ["left", "right"]}, ["left", "right"]), ({"choice": ["left", "right"]}, ["left", "right"]),
                ({"structured_outputs": {"choice": ["left", "right"]}}, ["left", "right"]),
                ({"guided_grammar": grammar}, ["ab", "cd"]), ({"grammar": grammar}, ["ab", "cd"]),
                ({"structured_outputs": {"grammar": grammar}}, ["ab", "cd"])]:
            for seed in range(3):
                with self.subTest(extra=extra, seed=seed):
                    finish, text = self.chat(seed, extra_body=extra)
                    self.assertEqual(finish, "stop")
                    self.assertIn(text, allowed)
                    if "response_format" in extra:
                        continue
                    done = self.client.completions.create(model="tiny", prompt="a", max_tokens=50, temperature=1, seed=seed, extra_body=extra)
                    self.assertEqual(done.choices[0].finish_reason, "stop")
                    self.assertIn(done.choices[0].text, allowed)
        for extra in ({"guided_regex": "[a-f]{3}-\\d+"}, {"regex": "[a-f]{3}-\\d+"}, {"structured_outputs": {"regex": "[a-f]{3}-\\d+"}}):
            finish, text = self.chat(2, extra_body=extra)
            self.assertRegex(text, r"^[a-f]{3}-\d+$" if finish == "stop" else r"^[a-f]")

    def test_bad_formats(self):
        def schema(value, **more):
            return {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": value, **more}}}

        at = "response_format.json_schema.schema"
        self.refused(at, "uniqueItems", **schema({"type": "array", "uniqueItems": True}))
        self.refused(at, **schema(5))
        self.refused(at, **schema({"type": "strnig"}))
        self.refused("response_format.json_schema.name", response_format={"type": "json_schema", "json_schema": {"schema": {}}})
        self.refused("response_format.json_schema.name", **schema({}, name="two words"))
        self.refused("response_format.json_schema.strict", **schema({}, strict="yes"))
        self.refused("response_format.json_schema", response_format={"type": "json_schema"})
        self.refused("response_format.type", response_format={"type": "xml"})
        self.refused("response_format.colour", response_format={"type": "text", "colour": 1})
        for path in ("/v1/chat/completions", "/v1/completions"):
            self.refused("regex", path=path, regex="(")
            self.refused("regex", path=path, regex=5)
            self.refused("grammar", path=path, grammar='root ::= "')
            self.refused("choice", path=path, choice=[])
            self.refused("choice[1]", path=path, choice=["a", 1])
            self.refused("guided_json", path=path, guided_json="{")
            self.refused("structured_outputs.xml", path=path, structured_outputs={"xml": 1})
            self.refused("regex", "guided_json", path=path, regex="a", guided_json={})
            self.refused("structured_outputs.choice", "structured_outputs.regex", path=path,
                         structured_outputs={"regex": "a", "choice": ["a"]})
            self.refused("guided_whitespace_pattern", path=path, guided_json={}, guided_whitespace_pattern=" ")
        deep = {}
        for _ in range(300):
            deep = {"items": deep}
        status, _, data = self.served.request("POST", "/v1/chat/completions", {"messages": ASK, **schema(deep)})
        self.assertEqual(status, 400, data)
        self.refused("regex", regex="(" * 500_000, expected=413)
        self.refused("regex", regex="((((a{1000}){1000}){1000}){1000})", expected=413)

    def test_the_clients_own_helpers(self):
        class Point(pydantic.BaseModel):
            x: int = pydantic.Field(ge=0, le=9)
            kind: bool

        request = dict(model="tiny", messages=ASK, response_format=Point, max_tokens=300, temperature=1, seed=4)
        parsed = self.client.chat.completions.parse(**request).choices[0].message.parsed
        self.assertIsInstance(parsed, Point)
        with self.client.chat.completions.stream(**request) as stream:
            for _ in stream:
                pass
            self.assertEqual(stream.get_final_completion().choices[0].message.parsed, parsed)

    def test_choices_and_stops(self):
        answer = self.client.chat.completions.create(model="tiny", messages=ASK, max_tokens=50, temperature=1, seed=1, n=4,
                                                     extra_body={"regex": "[xy]{12}"})
        for choice in answer.choices:
            self.assertEqual(choice.finish_reason, "stop")
            self.assertRegex(choice.message.content, "^[xy]{12}$")
        self.assertGreater(len({choice.message.content for choice in answer.choices}), 1)


class ThoughtsTest(StructuredCase):
    template = "hermes"

    def test_thoughts_come_first(self):
        ended = 0
        for seed in range(40):
            answer = self.client.chat.completions.create(
                model="tiny", messages=ASK, max_tokens=1500, temperature=1, seed=seed,
                logit_bias={}, response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "boolean"}}},
                extra_body={"chat_template_kwargs": {"enable_thinking": seed % 2 == 0}})
            choice = answer.choices[0]
            if choice.finish_reason == "stop":
                ended += 1
                self.assertIn(choice.message.content, ("true", "false"))
            else:
                self.assertEqual(choice.message.content, "")
                self.assertTrue(choice.message.reasoning_content)
        self.assertGreaterEqual(ended, 20)


if __name__ == "__main__":
    unittest.main()
