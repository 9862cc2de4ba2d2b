"""qiao constrain, with the program as a person runs it."""

import json
import os
import pathlib
import subprocess
import tempfile
import unittest

QIAO = os.environ["QIAO_BINARY"]
MODEL = pathlib.Path(__file__).resolve().parents[1] / "golden" / "chat"


class ConstrainCommand(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.schema = self.file("schema.json", '{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]}')
        self.good = self.file("good.json", '{"a": 12, "b": [null, "x"]}\n')
        self.bad = self.file("bad.json", '{"a": "12"}')
        self.short = self.file("short.json", '{"b": 1')

    def file(self, name, text):
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    def qiao(self, *arguments, text=""):
        run = subprocess.run([QIAO, "constrain", *arguments], capture_output=True, text=True, input=text, timeout=300)
        return run.returncode, run.stdout, run.stderr

    def test_verdicts_and_exit_codes(self):
        self.assertEqual(self.qiao("--schema", self.schema, self.good), (0, "accepted\n", ""))
        self.assertEqual(self.qiao("--schema", self.schema, self.bad), (1, "rejected at byte 6\n", ""))
        self.assertEqual(self.qiao("--schema", self.schema, self.short), (1, "rejected at byte 7\n", ""))
        status, out, _ = self.qiao("--schema", self.schema, self.good, self.bad)
        self.assertEqual((status, out), (1, f"{self.good}: accepted\n{self.bad}: rejected at byte 6\n"))

    def test_token_by_token_says_the_same(self):
        for file, status, said in ((self.good, 0, "accepted\n"), (self.bad, 1, "rejected at byte 6\n"),
                                   (self.short, 1, "rejected at byte 7\n")):
            self.assertEqual(self.qiao("--schema", self.schema, "-m", str(MODEL), file), (status, said, ""))

    def test_json(self):
        status, out, _ = self.qiao("--json", "--schema", self.schema, self.good, self.bad)
        self.assertEqual(status, 1)
        self.assertEqual(json.loads(out), [{"file": self.good, "accepted": True},
                                           {"file": self.bad, "accepted": False, "byte": 6}])

    def test_expressions_grammars_and_any_object(self):
        self.assertEqual(self.qiao("--regex", "[0-9]+", "-", text="123")[:2], (0, "accepted\n"))
        self.assertEqual(self.qiao("--regex", "[0-9]+", "-", text="12x")[:2], (1, "rejected at byte 2\n"))
        grammar = self.file("g.gbnf", 'root ::= "a" root "b" | ""')
        self.assertEqual(self.qiao("--grammar", grammar, "-", text="aabb")[:2], (0, "accepted\n"))
        self.assertEqual(self.qiao("--grammar", grammar, "-", text="aab")[:2], (1, "rejected at byte 3\n"))
        self.assertEqual(self.qiao("--json-object", self.good)[:2], (0, "accepted\n"))

    def test_what_is_not_supported_is_named_with_exit_code_2(self):
        for text, word in (('{"uniqueItems": true}', "uniqueItems"), ('{"$dynamicRef": "#x"}', "$dynamicRef"),
                           ('{"type": "text"}', "type"), ("{", "not valid JSON")):
            status, out, err = self.qiao("--schema", self.file("s.json", text), self.good)
            self.assertEqual((status, out), (2, ""), text)
            self.assertIn(word, err)
            self.assertEqual(err.count("\n"), 1)
        status, _, err = self.qiao("--regex", r"(a)\1", self.good)
        self.assertEqual(status, 2)
        self.assertIn("backreference", err)

    def test_wrong_usage(self):
        self.assertEqual(self.qiao(self.good)[0], 2)
        self.assertEqual(self.qiao("--regex", "a", "--schema", self.schema, self.good)[0], 2)
        status, _, err = self.qiao("--schema", self.schema, str(self.folder / "absent.json"))
        self.assertEqual(status, 1)
        self.assertIn("absent.json", err)


if __name__ == "__main__":
    unittest.main()
