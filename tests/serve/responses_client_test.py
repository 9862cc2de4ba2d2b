#!/usr/bin/env python3
"""The official openai client's Responses API against `qiao serve`, over the tiny model of tests/golden/chat.

  QIAO_BINARY=build/bin/qiao python tests/serve/responses_client_test.py
"""
import asyncio
import json
import unittest

import openai

from openai_client_test import HELLO, Served

QUESTION = "Why is the sky blue?"
GREEDY = {"temperature": 0, "extra_body": {"ignore_eos": True}}


class ResponsesTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.served = Served("-np", "4")
        cls.client = cls.served.client()

    @classmethod
    def tearDownClass(cls):
        if cls.served.stop() != 0:
            raise AssertionError("the server did not end with 0")

    def create(self, **more):
        return self.client.responses.create(**{**dict(model="chat", input=QUESTION, max_output_tokens=16), **GREEDY, **more})

    def chat_text(self, messages, tokens=16):
        return self.client.chat.completions.create(model="chat", messages=messages, max_tokens=tokens, **GREEDY).choices[0].message.content

    # --- create

    def test_a_response_is_the_chat_answer(self):
        response = self.create()
        self.assertEqual(response.object, "response")
        self.assertTrue(response.id.startswith("resp_"))
        self.assertEqual(response.output_text, self.chat_text(HELLO))
        self.assertEqual(response.status, "incomplete")
        self.assertEqual(response.incomplete_details.reason, "max_output_tokens")
        message = response.output[0]
        self.assertEqual((message.type, message.role, message.status), ("message", "assistant", "incomplete"))
        self.assertEqual(message.content[0].type, "output_text")
        self.assertEqual(message.content[0].annotations, [])
        self.assertEqual(response.usage.output_tokens, 16)
        self.assertEqual(response.usage.total_tokens, response.usage.input_tokens + 16)
        self.assertEqual(response.usage.output_tokens_details.reasoning_tokens, 0)
        chat = self.client.chat.completions.create(model="chat", messages=HELLO, max_tokens=1, **GREEDY)
        self.assertEqual(response.usage.input_tokens, chat.usage.prompt_tokens)

    def test_what_was_asked_is_echoed(self):
        response = self.create(temperature=0.25, top_p=0.5, metadata={"a": "b"}, instructions="Be brief.", user="u",
                               prompt_cache_key="k", safety_identifier="s", truncation="auto", parallel_tool_calls=False,
                               service_tier="auto", include=["reasoning.encrypted_content"], store=False, max_tool_calls=3)
        self.assertEqual((response.temperature, response.top_p, response.metadata), (0.25, 0.5, {"a": "b"}))
        self.assertEqual((response.instructions, response.truncation, response.parallel_tool_calls), ("Be brief.", "auto", False))
        self.assertEqual((response.max_output_tokens, response.prompt_cache_key), (16, "k"))
        self.assertEqual(response.text.format.type, "text")
        self.assertEqual(response.tool_choice, "auto")
        self.assertEqual(response.tools, [])
        self.assertIsNone(response.error)

    def test_instructions_and_items(self):
        expected = self.chat_text([{"role": "system", "content": "Be brief."}] + HELLO)
        self.assertEqual(self.create(instructions="Be brief.").output_text, expected)
        user = {"role": "user", "content": [{"type": "input_text", "text": QUESTION}]}
        self.assertEqual(self.create(input=[{"role": "developer", "content": "Be brief."}, user]).output_text, expected)
        self.assertEqual(self.create(input=[{"type": "message", "role": "system", "content": "Be brief."}, {"type": "message", **user}]).output_text, expected)
        dialogue = [HELLO[0], {"role": "assistant", "content": "Because."}, {"role": "user", "content": "Why?"}]
        self.assertEqual(self.create(input=dialogue).output_text, self.chat_text(dialogue))
        said = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
                "content": [{"type": "output_text", "text": "Because.", "annotations": []}]}
        self.assertEqual(self.create(input=[HELLO[0], said, dialogue[2]]).output_text, self.chat_text(dialogue))

    def test_an_answer_that_ends_is_completed(self):
        response = self.client.responses.create(model="chat", input=QUESTION, temperature=0, extra_body={"logit_bias": {"2": 100}})
        self.assertEqual((response.status, response.output_text, response.incomplete_details), ("completed", "", None))
        self.assertEqual(response.output[0].status, "completed")

    def test_logprobs(self):
        response = self.create(include=["message.output_text.logprobs"], top_logprobs=3, max_output_tokens=6)
        entries = response.output[0].content[0].logprobs
        self.assertEqual(len(entries), 6)
        self.assertTrue(all(entry.logprob <= 0 and len(entry.top_logprobs) == 3 for entry in entries))
        self.assertEqual(bytes(b for entry in entries for b in entry.bytes).decode("utf-8", "replace"), response.output_text)
        streamed = [entry for event in self.create(include=["message.output_text.logprobs"], top_logprobs=3, max_output_tokens=6, stream=True)
                    if event.type == "response.output_text.delta" for entry in event.logprobs]
        self.assertEqual([entry.logprob for entry in streamed], [entry.logprob for entry in entries])

    # --- streams

    def test_events_come_in_order(self):
        events = list(self.create(stream=True))
        kinds = [event.type for event in events]
        self.assertEqual(kinds[:4], ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"])
        self.assertEqual(kinds[-4:], ["response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete"])
        self.assertEqual(set(kinds[4:-4]), {"response.output_text.delta"})
        self.assertEqual([event.sequence_number for event in events], list(range(len(events))))
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        self.assertEqual(text, self.create().output_text)
        self.assertEqual(events[-4].text, text)
        self.assertEqual(events[-3].part.text, text)
        self.assertEqual(events[-1].response.output_text, text)
        self.assertEqual(events[-1].response.usage.output_tokens, 16)
        self.assertEqual(events[0].response.status, "in_progress")
        self.assertEqual(events[0].response.output, [])
        self.assertEqual({event.response.id for event in (events[0], events[1], events[-1])}, {events[0].response.id})
        self.assertEqual({event.item_id for event in events[4:-3]}, {events[2].item.id})

    def test_wire_format(self):
        status, headers, body = self.served.request("POST", "/v1/responses", {"input": "a", "stream": True, "max_output_tokens": 2})
        self.assertEqual(status, 200)
        self.assertTrue(headers["content-type"].startswith("text/event-stream"))
        for block in body.decode().strip().split("\n\n"):
            name, data = block.split("\n", 1)
            self.assertEqual(name, "event: " + json.loads(data.removeprefix("data: "))["type"])
        self.assertNotIn(b"[DONE]", body)

    def test_stream_helper(self):
        with self.client.responses.stream(model="chat", input=QUESTION, temperature=0, extra_body={"logit_bias": {"2": 100}}) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_response()
        self.assertEqual(kinds[-1], "response.completed")
        self.assertEqual(final.status, "completed")

    def test_async_client(self):
        async def both():
            async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{self.served.port}/v1", api_key="none", max_retries=0) as client:
                plain = await client.responses.create(model="chat", input=QUESTION, max_output_tokens=16, **GREEDY)
                stream = await client.responses.create(model="chat", input=QUESTION, max_output_tokens=16, stream=True, **GREEDY)
                return plain, [event async for event in stream]
        plain, events = asyncio.run(both())
        self.assertEqual(events[-1].response.output_text, plain.output_text)

    def test_raw_response(self):
        raw = self.client.responses.with_raw_response.create(model="chat", input="a", max_output_tokens=1)
        self.assertTrue(raw.headers["x-request-id"])
        self.assertEqual(raw.parse().object, "response")

    # --- what is kept

    def test_previous_response(self):
        first = self.create()
        second = self.create(input="Why?", previous_response_id=first.id)
        dialogue = HELLO + [{"role": "assistant", "content": first.output_text}, {"role": "user", "content": "Why?"}]
        self.assertEqual(second.output_text, self.chat_text(dialogue))
        self.assertEqual(second.previous_response_id, first.id)
        third = self.create(input="And?", previous_response_id=second.id)
        dialogue += [{"role": "assistant", "content": second.output_text}, {"role": "user", "content": "And?"}]
        self.assertEqual(third.output_text, self.chat_text(dialogue))
        streamed = list(self.create(input="And?", previous_response_id=second.id, stream=True))[-1].response
        self.assertEqual(streamed.output_text, third.output_text)
        fourth = self.create(input="So?", previous_response_id=streamed.id, instructions="Be brief.")
        dialogue += [{"role": "assistant", "content": third.output_text}, {"role": "user", "content": "So?"}]
        self.assertEqual(fourth.output_text, self.chat_text([{"role": "system", "content": "Be brief."}] + dialogue))
        self.assertGreater(third.usage.input_tokens_details.cached_tokens, 0)

    def test_instructions_are_not_carried_over(self):
        first = self.create(instructions="Be brief.")
        dialogue = HELLO + [{"role": "assistant", "content": first.output_text}, {"role": "user", "content": "Why?"}]
        self.assertEqual(self.create(input="Why?", previous_response_id=first.id).output_text, self.chat_text(dialogue))

    def test_retrieve_list_and_delete(self):
        first = self.create(metadata={"k": "v"})
        self.assertEqual(self.client.responses.retrieve(first.id), first)
        second = self.create(input="Why?", previous_response_id=first.id)
        items = list(self.client.responses.input_items.list(second.id, order="asc"))
        self.assertEqual([item.role for item in items], ["user", "assistant", "user"])
        self.assertEqual([item.content[0].text for item in items], [QUESTION, first.output_text, "Why?"])
        self.assertEqual(len({item.id for item in items}), 3)
        self.assertEqual([item.id for item in self.client.responses.input_items.list(second.id)], [item.id for item in items][::-1])
        page = self.client.responses.input_items.list(second.id, limit=2, order="asc")
        self.assertTrue(page.has_more)
        self.assertEqual([item.id for item in page.data], [item.id for item in items[:2]])
        self.assertEqual([item.id for item in self.client.responses.input_items.list(second.id, limit=1, order="asc")], [item.id for item in items])
        self.client.responses.delete(first.id)
        for call in (self.client.responses.retrieve, self.client.responses.delete):
            with self.assertRaises(openai.NotFoundError):
                call(first.id)
        self.assertEqual(self.client.responses.retrieve(second.id).id, second.id)

    def test_store_false_keeps_nothing(self):
        response = self.create(store=False)
        with self.assertRaises(openai.NotFoundError):
            self.client.responses.retrieve(response.id)
        with self.assertRaises(openai.NotFoundError) as caught:
            self.create(input="Why?", previous_response_id=response.id)
        self.assertEqual(caught.exception.param, "previous_response_id")

    def test_input_tokens(self):
        count = self.client.responses.input_tokens.count(model="chat", input=QUESTION)
        self.assertEqual(count.input_tokens, self.create().usage.input_tokens)

    def test_truncation(self):
        long = [{"role": "user" if i % 2 == 0 else "assistant", "content": f"Part {i}. " + "word " * 30} for i in range(21)]
        with self.assertRaises(openai.BadRequestError) as caught:
            self.create(input=long)
        self.assertEqual((caught.exception.param, caught.exception.code), ("input", "context_length_exceeded"))
        response = self.create(input=long, truncation="auto", instructions="Be brief.", max_output_tokens=4)
        self.assertLess(response.usage.input_tokens, 512)
        # The instructions stay, and as many of the last turns as there is room for.
        kept = next(long[first:] for first in range(0, 21, 2) if self.client.responses.input_tokens.count(
            model="chat", input=long[first:], instructions="Be brief.").input_tokens < 512)
        self.assertEqual(response.usage.input_tokens, self.client.responses.input_tokens.count(
            model="chat", input=kept, instructions="Be brief.").input_tokens)

    # --- what agents send

    def test_an_agents_request(self):
        body = {"model": "chat", "instructions": "You are an agent.", "stream": True, "store": False, "parallel_tool_calls": False,
                "tool_choice": "auto", "include": ["reasoning.encrypted_content"], "prompt_cache_key": "0a1b", "max_output_tokens": 8,
                "reasoning": {"effort": "medium", "summary": "auto"}, "text": {"verbosity": "low"}, "client_metadata": {"x": "y"},
                "tools": [{"type": "function", "name": "shell", "description": "Runs a command", "strict": False,
                           "parameters": {"type": "object", "properties": {"command": {"type": "array", "items": {"type": "string"}}}, "required": ["command"]}},
                          {"type": "custom", "name": "apply_patch", "format": {"type": "grammar", "syntax": "lark", "definition": "start: \"x\""}},
                          {"type": "namespace", "name": "mcp__files", "description": "d", "tools": [{"type": "function", "name": "read", "parameters": {"type": "object"}}]},
                          {"type": "web_search", "external_web_access": False}],
                "input": [{"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "<permissions>"}]},
                          {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "<environment>"}]},
                          {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "List the files."}]},
                          {"type": "reasoning", "summary": [{"type": "summary_text", "text": "I should list."}], "content": None, "encrypted_content": None},
                          {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Listing."}]},
                          {"type": "function_call", "name": "shell", "arguments": "{\"command\":[\"ls\"]}", "call_id": "call_1"},
                          {"type": "function_call_output", "call_id": "call_1", "output": "a.txt"},
                          {"type": "custom_tool_call", "status": "completed", "call_id": "call_2", "name": "apply_patch", "input": "*** Begin"},
                          {"type": "custom_tool_call_output", "call_id": "call_2", "output": "Done"}]}
        served = Served(context=4096)  # the tools' descriptions are long
        try:
            status, _, answer = served.request("POST", "/v1/responses", body)
        finally:
            served.stop()
        self.assertEqual(status, 200, answer)
        self.assertRegex(answer, rb"event: response\.(completed|incomplete)")

    def test_errors_name_the_field(self):
        call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
        function = {"type": "function", "name": "f", "parameters": {"type": "object"}}
        cases = [
            ("input", {"input": None}), ("input", {"input": 5}), ("input", {"input": []}), ("input[0]", {"input": ["x"]}),
            ("input[0].role", {"input": [{"content": "x"}]}), ("input[0].role", {"input": [{"role": "tool", "content": "x"}]}),
            ("input[0].content", {"input": [{"role": "user"}]}), ("input[0].content[0].type", {"input": [{"role": "user", "content": [{"text": "x"}]}]}),
            ("input[0].content[0].type", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}),
            ("input[0].type", {"input": [{"type": "computer_call", "id": "x"}]}), ("input[0].mood", {"input": [{"role": "user", "content": "x", "mood": 1}]}),
            ("input[0].arguments", {"input": [{**call, "arguments": "{"}]}), ("input[0].arguments", {"input": [{**call, "arguments": "[]"}]}),
            ("input[1].call_id", {"input": [call, call]}), ("input[0].call_id", {"input": [{"type": "function_call_output", "call_id": "z", "output": "x"}]}),
            ("input[0].summary", {"input": [{"type": "reasoning", "summary": "x"}]}),
            ("max_output_tokens", {"max_output_tokens": 0}), ("max_output_tokens", {"max_output_tokens": "x"}), ("temperature", {"temperature": -0.1}),
            ("top_p", {"top_p": 2}), ("top_logprobs", {"top_logprobs": 21}), ("metadata", {"metadata": {"a": 1}}), ("metadata", {"metadata": []}),
            ("include", {"include": ["everything"]}), ("store", {"store": "yes"}), ("stream", {"stream": 1}), ("truncation", {"truncation": "maybe"}),
            ("text.format.type", {"text": {"format": {"type": "xml"}}}), ("text.format.schema", {"text": {"format": {"type": "json_schema", "name": "n"}}}),
            ("text.style", {"text": {"style": 1}}), ("reasoning.effort", {"reasoning": {"effort": "huge"}}), ("reasoning.depth", {"reasoning": {"depth": 1}}),
            ("tools", {"tools": {}}), ("tools[0].type", {"tools": [{"name": "f"}]}), ("tools[0].type", {"tools": [{"type": "mcp", "server_label": "x"}]}),
            ("tools[0].name", {"tools": [{"type": "function"}]}), ("tools[0].name", {"tools": [{"type": "function", "name": "a b"}]}),
            ("tools[1].name", {"tools": [function, function]}), ("tools[0].parameters", {"tools": [{**function, "parameters": []}]}),
            ("tools", {"tools": [{**function, "name": f"f{i}"} for i in range(2000)]}), ("tool_choice", {"tool_choice": "always"}),
            ("tool_choice", {"tool_choice": "required"}), ("tool_choice.name", {"tools": [function], "tool_choice": {"type": "function", "name": "g"}}),
            ("tool_choice.type", {"tool_choice": {"type": "web_search"}}), ("background", {"background": True}), ("conversation", {"conversation": "c"}),
            ("prompt", {"prompt": {"id": "p"}}), ("previous_response_id", {"previous_response_id": 5}), ("n", {"n": 2}), ("no_such_field", {"no_such_field": 1}),
        ]
        for field, change in cases:
            with self.subTest(field=field, change=str(change)[:200]):
                status, _, body = self.served.request("POST", "/v1/responses", {"model": "chat", "input": "a", "max_output_tokens": 2, **change})
                error = json.loads(body)["error"]
                self.assertEqual((status, error["param"]), (400, field), error)
                self.assertIn(field, error["message"])
        with self.assertRaises(openai.NotFoundError):
            self.client.responses.create(model="another", input="a")
        response = self.create(max_output_tokens=1)
        for query, field in [("limit=0", "limit"), ("limit=101", "limit"), ("limit=x", "limit"), ("order=up", "order"), ("after=nothing", "after"), ("after=%4", "after")]:
            status, _, body = self.served.request("GET", f"/v1/responses/{response.id}/input_items?{query}", headers={"authorization": "Bearer none"})
            self.assertEqual((status, json.loads(body)["error"]["param"]), (400, field), body)
        self.assertEqual(self.served.request("GET", f"/v1/responses/{response.id}?stream=true")[0], 400)
        self.assertEqual(self.served.request("PUT", f"/v1/responses/{response.id}")[0], 405)
        self.assertEqual(self.served.request("GET", f"/v1/responses/{response.id}/nothing")[0], 404)
        self.assertEqual(self.served.request("GET", "/v1/responses/")[0], 404)


class StoreTest(unittest.TestCase):
    def test_keys_do_not_see_each_other(self):
        served = Served("--api-key", "first", "--api-key", "second")
        try:
            mine = served.client("first").responses.create(model="chat", input="a", max_output_tokens=1)
            self.assertEqual(served.client("first").responses.retrieve(mine.id).id, mine.id)
            with self.assertRaises(openai.NotFoundError):
                served.client("second").responses.retrieve(mine.id)
            with self.assertRaises(openai.NotFoundError):
                served.client("second").responses.delete(mine.id)
            with self.assertRaises(openai.NotFoundError):
                served.client("second").responses.create(model="chat", input="b", previous_response_id=mine.id)
        finally:
            served.stop()

    def test_nothing_is_kept_without_room(self):
        served = Served("--keep-responses", "0")
        try:
            response = served.client().responses.create(model="chat", input="a", max_output_tokens=1)
            with self.assertRaises(openai.NotFoundError):
                served.client().responses.retrieve(response.id)
        finally:
            served.stop()


if __name__ == "__main__":
    unittest.main(verbosity=1)
