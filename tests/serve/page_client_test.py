#!/usr/bin/env python3
"""The chat page in headless Chromium, over the tiny model of tests/golden/chat: streams, stops, survives markup.

  QIAO_BINARY=build/bin/qiao python tests/serve/page_client_test.py [--shots FOLDER] [--model MODEL]

Needs the wheel playwright and the distribution's chromium.

--shots keeps screenshots for a person to look at; --model takes another model for them.
"""
import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import unittest

from playwright.sync_api import sync_playwright

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("QIAO_BINARY", str(ROOT / "build" / "bin" / "qiao"))
PATIENCE = 180_000  # milliseconds, for a browser that has a busy machine
OPTIONS = argparse.Namespace(shots=None, model=str(ROOT / "tests" / "golden" / "chat"))


class PageTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = subprocess.Popen([BINARY, "serve", "-m", OPTIONS.model, "--port", "0", "-q"], stderr=subprocess.PIPE, text=True)
        cls.address = re.search(r"http://[^ ]+", cls.server.stderr.readline())[0]
        cls.playwright = sync_playwright().start()
        cls.browser = cls.playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"], timeout=PATIENCE)

    @classmethod
    def tearDownClass(cls):
        cls.browser.close()
        cls.playwright.stop()
        cls.server.terminate()
        cls.server.wait(60)
        cls.server.stderr.close()

    def open(self, **context):
        # The policy forbids eval, which waiting for a condition needs; the header itself is tested with the endpoints.
        page = self.browser.new_context(bypass_csp=True, **context).new_page()
        page.set_default_timeout(PATIENCE)
        self.problems = []
        page.on("console", lambda message: self.problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith((self.address, "data:")) else self.problems.append(request.url))
        page.goto(self.address)
        page.wait_for_function("document.getElementById('model').textContent !== ''")
        return page

    def ask(self, page, text):
        page.fill("#input", text)
        page.press("#input", "Enter")

    def finished(self, page):
        page.wait_for_selector(".message.assistant .note")
        page.wait_for_function("document.getElementById('send').textContent === 'Send'")

    def shot(self, page, name):
        if OPTIONS.shots:
            page.screenshot(path=str(pathlib.Path(OPTIONS.shots) / f"{name}.png"))

    def limit(self, page, tokens):
        page.click("#settings")
        page.fill("#temperature", "0")
        page.fill("#max", str(tokens))
        page.click("dialog button")

    def test_answers_and_shows_its_speed(self):
        page = self.open(viewport={"width": 1100, "height": 760}, color_scheme="light")
        self.shot(page, "empty")
        self.limit(page, 150)
        self.ask(page, "Why is the sky blue?")
        self.finished(page)
        self.assertRegex(page.inner_text(".note"), r"\d+ tokens · [\d.]+ tokens/s · first after [\d.]+ s")
        self.assertTrue(page.inner_text(".message.assistant"))
        self.shot(page, "light")
        self.assertEqual(self.problems, [])

    def test_works_on_a_phone_in_the_dark(self):
        page = self.open(viewport={"width": 390, "height": 780}, color_scheme="dark", is_mobile=True, has_touch=True)
        self.limit(page, 100)
        self.ask(page, "Write a haiku about bridges")
        self.finished(page)
        self.assertLessEqual(page.evaluate("document.documentElement.scrollWidth"), 390)
        self.assertEqual(page.evaluate("getComputedStyle(document.body).backgroundColor"), "rgb(21, 24, 27)")
        self.shot(page, "phone")
        self.assertEqual(self.problems, [])

    def test_stop_ends_the_answer(self):
        page = self.open()
        # A long answer, shown event by event and in the end one a second, so that there is something to stop.
        page.evaluate("""() => { let shown = 0; const whole = window.fetch; window.fetch = async (url, options) => {
            if (!String(url).includes('chat')) return whole(url, options);
            options.body = JSON.stringify({ ...JSON.parse(options.body), ignore_eos: true });
            const answer = await whole(url, options), decode = new TextDecoder(), encode = new TextEncoder();
            const slow = new TransformStream({ async transform(chunk, out) {
                for (const event of decode.decode(chunk, { stream: true }).split(/(?<=\\n\\n)/)) {
                    await new Promise(resume => setTimeout(resume, ++shown < 20 ? 20 : 1000));
                    out.enqueue(encode.encode(event));
                } } });
            return new Response(answer.body.pipeThrough(slow, { signal: options.signal }), { status: answer.status }); }; }""")
        self.ask(page, "Tell me a long story.")
        page.wait_for_function("document.getElementById('send').textContent === 'Stop'")
        page.wait_for_function("document.querySelector('.message.assistant').innerText.length > 3")
        page.click("#send")
        self.finished(page)
        self.assertIn("stopped", page.inner_text(".note"))

    def test_markup_stays_text(self):
        page = self.open()
        self.ask(page, "<img src=x onerror=alert(1)> <script>alert(2)</script>")
        self.finished(page)
        self.assertEqual(page.locator("#log img, #log script").count(), 0)
        self.assertIn("<script>", page.inner_text(".message.user"))
        page.evaluate("""() => { const d = document.createElement('div'); d.id = 'probe'; document.body.append(d);
            render(d, '**bold** <b>no</b> `a<b`\\n\\n```html\\n<script>x</script>\\n```\\n- one\\n- two'); }""")
        self.assertEqual(page.locator("#probe script, #probe b").count(), 0)
        self.assertEqual(page.locator("#probe li").count(), 2)
        self.assertEqual(page.inner_text("#probe pre code"), "<script>x</script>")

    def test_the_markdown_of_models(self):
        page = self.open(viewport={"width": 390, "height": 780})
        page.evaluate("""() => { const d = document.createElement('div'); d.id = 'probe'; d.className = 'message'; log.append(d);
            render(d, '# Head\\nA *word*, **two [links](https://x.example/a)** and [no link](javascript:alert(1)), 2 * 3 * 4.\\n' +
                '1. one\\n   - inner\\n2. two\\n\\n> quoted\\n> twice\\n\\n| a | b |\\n|---|:--:|\\n| 1 | **2** |\\n\\n---\\n' +
                '```\\n| not | a table |\\n' + 'wide '.repeat(100)); }""")
        self.assertEqual(page.inner_text("#probe h3"), "Head")
        self.assertEqual(page.inner_text("#probe em"), "word")
        self.assertEqual([page.locator("#probe a").count(), page.get_attribute("#probe strong a", "href")], [1, "https://x.example/a"])
        self.assertEqual(page.get_attribute("#probe a", "rel"), "noopener noreferrer")
        self.assertEqual(page.locator("#probe ol > li").count(), 2)
        self.assertEqual(page.inner_text("#probe ol > li ul"), "inner")
        self.assertIn("twice", page.inner_text("#probe blockquote"))
        self.assertEqual(page.locator("#probe th").count(), 2)
        self.assertEqual(page.inner_text("#probe td strong"), "2")
        self.assertEqual(page.locator("#probe hr").count(), 1)
        self.assertIn("| not | a table |", page.inner_text("#probe pre"))  # also while its end is still to come
        self.assertLessEqual(page.evaluate("document.documentElement.scrollWidth"), 390)

    def test_a_new_chat_forgets_an_answer_that_still_runs(self):
        page = self.open()
        page.evaluate("""() => { const whole = window.fetch; window.fetch = (url, options) => {
            if (String(url).includes('chat')) options.body = JSON.stringify({ ...JSON.parse(options.body), ignore_eos: true });
            return whole(url, options); }; }""")
        self.ask(page, "Tell me a long story.")
        page.wait_for_function("document.querySelector('.message.assistant').innerText.length > 1")
        page.click("#clear")
        page.wait_for_function("document.getElementById('send').textContent === 'Send'")
        self.assertEqual(page.evaluate("messages.length"), 0)
        self.assertEqual(page.locator(".message").count(), 0)
        self.limit(page, 3)
        self.ask(page, "Hello")
        page.wait_for_selector(".message.assistant .note")
        self.assertEqual(page.evaluate("messages.length"), 2)

    def test_an_error_is_shown_and_the_text_kept(self):
        page = self.open()
        page.click("#settings")
        page.fill("#temperature", "0")
        page.fill("#max", "5")
        page.click("dialog button")
        page.route("**/v1/chat/completions", lambda route: route.fulfill(
            status=400, content_type="application/json", body='{"error": {"message": "messages: too long"}}'))
        self.ask(page, "hello")
        page.wait_for_selector(".message.error")
        self.assertEqual(page.inner_text(".message.error"), "messages: too long")
        self.assertEqual(page.input_value("#input"), "hello")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shots")
    parser.add_argument("--model", default=OPTIONS.model)
    parser.parse_known_args(namespace=OPTIONS)
    rest = [a for a in sys.argv[1:] if a.startswith("Page")]
    unittest.main(argv=[sys.argv[0], *rest])
