"""/metrics against its documentation: every family is in docs/serve.md, the dashboard asks for nothing else."""
import json
import os
import pathlib
import re
import time
import unittest

from serving import ROOT, Serving

NAME = r"(?:vllm|qiao):[a-z0-9_]+|process_[a-z0-9_]+"


class MetricsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        served = Serving()
        try:
            served.complete(prompt="a", max_tokens=3, temperature=0, ignore_eos=True)
            # The connection that asked has been closed here; the server hears of it in its own time.
            end = time.monotonic() + 60
            while True:
                cls.text = served.request("GET", "/metrics")[2].decode()
                if re.search(r"^qiao:http_connections\S* 1$", cls.text, re.M) or time.monotonic() > end:
                    break
                time.sleep(0.02)
            fields = pathlib.Path(f"/proc/{served.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
            cls.cpu_seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        finally:
            served.stop()
        cls.families = dict(re.findall(r"^# TYPE (\S+) (\S+)$", cls.text, re.M))
        cls.samples = {re.match(r"[^{ ]+", line)[0] for line in cls.text.splitlines() if not line.startswith("#")}

    def test_every_family_has_help_and_samples(self):
        for name, kind in self.families.items():
            self.assertRegex(self.text, rf"(?m)^# HELP {name} \S")
            wanted = [name + end for end in ("_bucket", "_sum", "_count")] if kind == "histogram" else [name]
            self.assertLessEqual(set(wanted), self.samples)
        for sample in self.samples:
            family = sample if sample in self.families else re.sub(r"_(bucket|sum|count)$", "", sample)
            self.assertIn(family, self.families)

    def test_the_documentation_lists_exactly_what_there_is(self):
        page = (ROOT / "docs" / "serve.md").read_text()
        documented = set(re.findall(rf"`({NAME})`", page.split("\n## Metrics\n")[1].split("\n## ")[0]))
        self.assertEqual(documented, set(self.families))

    def test_the_dashboard_asks_for_what_there_is(self):
        dashboard = json.loads((ROOT / "docs" / "grafana.json").read_text())
        expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
        expressions += [v["query"]["query"] for v in dashboard["templating"]["list"] if v["type"] == "query"]
        asked = {name for expression in expressions for name in re.findall(NAME, expression)}
        self.assertGreater(len(asked), 15)
        self.assertLessEqual(asked, self.samples)
        places = [tuple(panel["gridPos"].values()) for panel in dashboard["panels"]]
        self.assertEqual(len(set(places)), len(places))

    def test_what_a_request_adds(self):
        def value(name):
            return float(re.search(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", self.text, re.M)[1])
        self.assertEqual(value("vllm:generation_tokens_total"), 3)
        self.assertEqual(value("vllm:request_generation_tokens_sum"), 3)
        self.assertEqual(value("vllm:request_generation_tokens_count"), 1)
        self.assertEqual(value("vllm:inter_token_latency_seconds_count"), 2)
        self.assertEqual(value("vllm:request_prompt_tokens_sum"), value("vllm:prompt_tokens_total"))
        self.assertEqual(value("qiao:http_connections"), 1)
        self.assertGreater(value("process_resident_memory_bytes"), 1 << 20)
        self.assertAlmostEqual(value("process_cpu_seconds_total"), self.cpu_seconds, delta=0.5)


if __name__ == "__main__":
    unittest.main()
