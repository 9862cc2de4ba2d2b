#!/usr/bin/env python3
"""The official anthropic client against `qiao serve`, over the tiny model of tests/golden/chat.

  QIAO_BINARY=build/bin/qiao python tests/serve/messages_client_test.py
"""
import asyncio
import json
import unittest

import anthropic

from openai_client_test import HELLO, Served

GREEDY = {"extra_body": {"ignore_eos": True, "temperature": 0}}
ENDS = {"extra_body": {"temperature": 0, "logit_bias": {"2": 100}}}  # token 2 ends a turn
WEATHER = {"name": "weather", "description": "Tells the weather", "input_schema": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}


def client_of(served, kind=anthropic.Anthropic, **more):
    return kind(base_url=f"http://127.0.0.1:{served.port}", **{"api_key": "none", "max_retries": 0, "timeout": 300, **more})


class MessagesTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.served = Served("-np", "4")
        cls.client = client_of(cls.served)

    @classmethod
    def tearDownClass(cls):
        if cls.served.stop() != 0:
            raise AssertionError("the server did not end with 0")

    def create(self, **more):
        return self.client.messages.create(**{**dict(model="chat", messages=HELLO, max_tokens=16), **GREEDY, **more})

    def chat(self, messages, **more):
        return self.served.client().chat.completions.create(
            **{**dict(model="chat", messages=messages, max_tokens=16, temperature=0, extra_body={"ignore_eos": True}), **more})

    def chat_text(self, messages):
        return self.chat(messages).choices[0].message.content

    # --- create

    def test_a_message_is_the_chat_answer(self):
        message = self.create()
        self.assertEqual((message.type, message.role, message.model), ("message", "assistant", "chat"))
        self.assertTrue(message.id.startswith("msg_"))
        self.assertEqual([block.type for block in message.content], ["text"])
        self.assertEqual(message.content[0].text, self.chat_text(HELLO))
        self.assertEqual((message.stop_reason, message.stop_sequence), ("max_tokens", None))
        self.assertEqual(message.usage.output_tokens, 16)
        prompt = self.chat(HELLO).usage.prompt_tokens
        self.assertEqual(message.usage.input_tokens + message.usage.cache_read_input_tokens, prompt)
        self.assertTrue(message._request_id)

    def test_system_and_blocks(self):
        expected = self.chat_text([{"role": "system", "content": "Be brief."}] + HELLO)
        self.assertEqual(self.create(system="Be brief.").content[0].text, expected)
        cached = {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}
        self.assertEqual(self.create(system=[cached]).content[0].text, expected)
        billing = {"type": "text", "text": "x-anthropic-billing-header: cc_version=2; cch=1f2e3;"}
        self.assertEqual(self.create(system=[billing, cached]).content[0].text, expected)
        blocks = [{"role": "user", "content": [{"type": "text", "text": HELLO[0]["content"], "cache_control": {"type": "ephemeral"}}]}]
        self.assertEqual(self.create(messages=blocks, system="Be brief.").content[0].text, expected)
        turns = [{"role": "user", "content": "Why is"}, {"role": "user", "content": "the sky blue?"}]
        self.assertEqual(self.create(messages=turns).content[0].text, self.chat_text([{"role": "user", "content": "Why is\n\nthe sky blue?"}]))
        document = [{"role": "user", "content": [{"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "The sky."}, "title": "T"}]}]
        self.assertEqual(self.create(messages=document).content[0].text, self.chat_text([{"role": "user", "content": "T\nThe sky."}]))

    def test_an_answer_that_is_begun_goes_on(self):
        whole = self.create().content[0].text
        begun = HELLO + [{"role": "assistant", "content": whole}]
        rendered = "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n" + whole
        expected = self.served.client().completions.create(model="chat", prompt=rendered, max_tokens=8, temperature=0, extra_body={"ignore_eos": True})
        self.assertEqual(self.create(messages=begun, max_tokens=8).content[0].text, expected.choices[0].text)

    def test_stop_reasons(self):
        ended = self.client.messages.create(model="chat", messages=HELLO, max_tokens=16, **ENDS)
        self.assertEqual((ended.stop_reason, ended.content), ("end_turn", []))
        text = self.create(max_tokens=40).content[0].text
        stop = text[len(text) // 2:len(text) // 2 + 2]
        stopped = self.create(max_tokens=40, stop_sequences=["never said", stop])
        self.assertEqual((stopped.stop_reason, stopped.stop_sequence), ("stop_sequence", stop))
        self.assertEqual(stopped.content[0].text, text[:text.index(stop)])
        full = self.create(max_tokens=5000)
        self.assertEqual(full.stop_reason, "model_context_window_exceeded")

    def test_cached_tokens(self):
        system = "You are careful. " * 12
        first = self.create(system=system, max_tokens=1)
        again = self.create(system=system, max_tokens=1)
        self.assertGreater(again.usage.cache_read_input_tokens, 0)
        self.assertEqual(again.usage.input_tokens + again.usage.cache_read_input_tokens, first.usage.input_tokens + first.usage.cache_read_input_tokens)

    def test_count_tokens(self):
        count = self.client.messages.count_tokens(model="chat", messages=HELLO, system="Be brief.")
        used = self.create(system="Be brief.").usage
        self.assertEqual(count.input_tokens, used.input_tokens + used.cache_read_input_tokens)

    # --- streams

    def test_events_come_in_order(self):
        events = list(self.create(stream=True))
        kinds = [event.type for event in events]
        self.assertEqual(kinds[:2], ["message_start", "content_block_start"])
        self.assertEqual(kinds[-3:], ["content_block_stop", "message_delta", "message_stop"])
        self.assertEqual(set(kinds[2:-3]), {"content_block_delta"})
        text = "".join(event.delta.text for event in events if event.type == "content_block_delta")
        self.assertEqual(text, self.create().content[0].text)
        self.assertEqual(events[0].message.content, [])
        self.assertGreater(events[0].message.usage.input_tokens, 0)
        self.assertEqual(events[-2].delta.stop_reason, "max_tokens")
        self.assertEqual(events[-2].usage.output_tokens, 16)

    def test_wire_format(self):
        status, headers, body = self.served.request("POST", "/v1/messages?beta=true", {
            "model": "chat", "max_tokens": 2, "messages": HELLO, "stream": True, "ignore_eos": True})
        self.assertEqual(status, 200)
        self.assertTrue(headers["content-type"].startswith("text/event-stream"))
        self.assertEqual(headers["request-id"], headers["x-request-id"])
        names = []
        for block in body.decode().strip().split("\n\n"):
            name, data = block.split("\n", 1)
            names.append(name.removeprefix("event: "))
            self.assertEqual(json.loads(data.removeprefix("data: "))["type"], names[-1])
        self.assertEqual(names[:3], ["message_start", "ping", "content_block_start"])

    def test_stream_helper(self):
        plain = self.create()
        with self.client.messages.stream(model="chat", messages=HELLO, max_tokens=16, **GREEDY) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        self.assertEqual(text, plain.content[0].text)
        self.assertEqual((final.content[0].text, final.stop_reason), (text, "max_tokens"))
        self.assertEqual(final.usage.output_tokens, 16)
        self.assertEqual(final.usage.input_tokens + final.usage.cache_read_input_tokens, plain.usage.input_tokens + plain.usage.cache_read_input_tokens)

    def test_async_client(self):
        async def both():
            async with client_of(self.served, anthropic.AsyncAnthropic) as client:
                plain = await client.messages.create(model="chat", messages=HELLO, max_tokens=16, **GREEDY)
                async with client.messages.stream(model="chat", messages=HELLO, max_tokens=16, **GREEDY) as stream:
                    return plain, await stream.get_final_text()
        plain, text = asyncio.run(both())
        self.assertEqual(text, plain.content[0].text)

    def test_raw_response_and_beta(self):
        raw = self.client.messages.with_raw_response.create(model="chat", messages=HELLO, max_tokens=1)
        self.assertTrue(raw.headers["request-id"])
        self.assertEqual(raw.parse().type, "message")
        beta = self.client.beta.messages.create(model="chat", messages=HELLO, max_tokens=1, betas=["context-management-2025-06-27"],
                                                context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]})
        self.assertEqual(beta.type, "message")

    # --- what agents send

    def test_an_agents_request(self):
        tools = [{**WEATHER, "cache_control": {"type": "ephemeral"}, "eager_input_streaming": True}]
        messages = [
            {"role": "user", "content": [{"type": "text", "text": "<reminder>"}, {"type": "text", "text": "Weather in Paris?"}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "Ask the tool.", "signature": "s"}, {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "Looking."}, {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Paris"}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "Sunny"}], "is_error": False, "cache_control": {"type": "ephemeral"}},
                {"type": "text", "text": "And now?"}]}]
        status, _, body = self.served.request("POST", "/v1/messages?beta=true", {
            "model": "chat", "max_tokens": 4, "messages": messages, "stream": True, "tools": tools, "tool_choice": {"type": "none"},
            "thinking": {"type": "enabled", "budget_tokens": 1024}, "metadata": {"user_id": "u"}, "temperature": 1, "service_tier": "auto",
            "context_management": {"edits": []}, "output_config": {"effort": "high"}, "speed": "standard", "mcp_servers": [],
            "system": [{"type": "text", "text": "You are an agent.", "cache_control": {"type": "ephemeral"}}]},
            {"anthropic-version": "2023-06-01", "anthropic-beta": "interleaved-thinking-2025-05-14", "x-api-key": "k", "x-app": "cli"})
        self.assertEqual(status, 200, body)
        self.assertIn(b"event: message_stop", body)

    # --- what is wrong

    def test_errors(self):
        with self.assertRaises(anthropic.BadRequestError) as caught:
            self.create(max_tokens=0)
        self.assertEqual(caught.exception.body["error"]["type"], "invalid_request_error")
        self.assertEqual(caught.exception.body["type"], "error")
        self.assertIn("max_tokens", caught.exception.message)
        self.assertTrue(caught.exception.body["request_id"])
        with self.assertRaises(anthropic.NotFoundError) as caught:
            self.create(model="another")
        self.assertEqual(caught.exception.body["error"]["type"], "not_found_error")
        with self.assertRaises(anthropic.BadRequestError) as caught:
            self.create(messages=[{"role": "user", "content": "word " * 2000}])
        self.assertIn("messages: ", caught.exception.message)
        status, _, body = self.served.request("GET", "/v1/messages")
        self.assertEqual((status, json.loads(body)["type"]), (405, "error"))
        status, _, body = self.served.request("POST", "/v1/messages", b"{")
        self.assertEqual((status, json.loads(body)["error"]["type"]), (400, "invalid_request_error"))

    def test_errors_name_the_field(self):
        def user(block):
            return {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, block]}]}

        def assistant(block):
            return {"messages": [HELLO[0], {"role": "assistant", "content": [block]}]}

        use = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
        image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
        cases = [
            ("max_tokens", {"max_tokens": None}), ("max_tokens", {"max_tokens": -1}), ("max_tokens", {"max_tokens": 1.5}),
            ("messages", {"messages": None}), ("messages", {"messages": []}), ("messages", {"messages": "x"}), ("messages[0]", {"messages": ["x"]}),
            ("messages[0].role", {"messages": [{"role": "tool", "content": "x"}]}), ("messages[0].content", {"messages": [{"role": "user"}]}),
            ("messages[0].content", {"messages": [{"role": "user", "content": 5}]}), ("messages[0].name", {"messages": [{**HELLO[0], "name": "x"}]}),
            ("messages[0].content[1].type", user(image)), ("messages[0].content[1].type", user({"text": "x"})),
            ("messages[0].content[1].source.type", user({"type": "document", "source": {"type": "base64", "data": "x", "media_type": "application/pdf"}})),
            ("messages[0].content[1].tool_use_id", user({"type": "tool_result", "tool_use_id": "z", "content": "x"})),
            ("messages[0].content[1].text", user({"type": "text"})), ("messages[0].content[1].mood", user({"type": "text", "text": "x", "mood": 1})),
            ("messages[1].content[0].input", assistant({**use, "input": "x"})), ("messages[1].content[0].name", assistant({"type": "tool_use", "id": "t", "input": {}})),
            ("messages[1].content[0].type", assistant({"type": "server_tool_use", "id": "t", "name": "web_search", "input": {}})),
            ("system", {"system": 5}), ("system[0].type", {"system": [image]}), ("temperature", {"temperature": -1}), ("temperature", {"temperature": 3}), ("top_p", {"top_p": -1}), ("top_k", {"top_k": -5}),
            ("stop_sequences", {"stop_sequences": [""]}), ("stop_sequences", {"stop_sequences": ["x"] * 65}), ("stop_sequences[0]", {"stop_sequences": [5]}),
            ("stream", {"stream": "yes"}), ("metadata", {"metadata": 5}), ("tools", {"tools": {}}), ("tools[0].name", {"tools": [{"input_schema": {}}]}),
            ("tools[0].name", {"tools": [{**WEATHER, "name": "a b"}]}), ("tools[1].name", {"tools": [WEATHER, WEATHER]}),
            ("tools[0].input_schema", {"tools": [{"name": "f"}]}), ("tools[0].input_schema", {"tools": [{"name": "f", "input_schema": 5}]}),
            ("tools[0].type", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}), ("tools", {"tools": [{**WEATHER, "name": f"f{i}"} for i in range(2000)]}),
            ("tool_choice.type", {"tool_choice": {"type": "some"}}), ("tool_choice", {"tool_choice": {"type": "any"}}),
            ("tool_choice.name", {"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "g"}}), ("thinking.type", {"thinking": {"type": "deep"}}),
            ("thinking.budget_tokens", {"thinking": {"type": "enabled"}}), ("thinking.budget_tokens", {"thinking": {"type": "enabled", "budget_tokens": -1}}),
            ("output_config.effort", {"output_config": {"effort": "huge"}}), ("output_config.format.type", {"output_config": {"format": {"type": "xml"}}}),
            ("mcp_servers", {"mcp_servers": [{"type": "url", "url": "x", "name": "y"}]}), ("container", {"container": "c"}), ("no_such_field", {"no_such_field": 1}),
        ]
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            for field, change in cases:
                if "count" in path and change.get("max_tokens", 0) is None:
                    continue
                with self.subTest(path=path, field=field, change=str(change)[:200]):
                    status, _, body = self.served.request("POST", path, {"model": "chat", "max_tokens": 2, "messages": HELLO, **change})
                    answer = json.loads(body)
                    self.assertEqual((status, answer["type"], answer["error"]["type"]), (400, "error", "invalid_request_error"), answer)
                    self.assertTrue(answer["error"]["message"].startswith(field + ":"), answer)

    def test_keys(self):
        served = Served("--api-key", "secret")
        try:
            for good in ({"api_key": "secret"}, {"api_key": None, "auth_token": "secret"}):
                self.assertEqual(client_of(served, **good).messages.create(model="chat", messages=HELLO, max_tokens=1).type, "message")
            with self.assertRaises(anthropic.AuthenticationError) as caught:
                client_of(served, api_key="wrong").messages.create(model="chat", messages=HELLO, max_tokens=1)
            self.assertEqual(caught.exception.body["error"]["type"], "authentication_error")
        finally:
            served.stop()


if __name__ == "__main__":
    unittest.main(verbosity=1)
