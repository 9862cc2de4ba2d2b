#!/usr/bin/env python3
"""lm-evaluation-harness' local-completions against `qiao serve`, and `qiao eval` on the same files: the same numbers.

  QIAO_BINARY=build/bin/qiao python tests/serve/lm_eval_client_test.py

Tasks are made here, over tests/golden/eval: no data set is fetched. Tokens come from the server's own /tokenizer_info,
/tokenize and /detokenize, so that neither PyTorch nor Transformers is needed.
"""
import json
import os
import pathlib
import subprocess
import tempfile
import unittest

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", LMEVAL_LOG_LEVEL="ERROR")
os.environ.setdefault("HF_HOME", tempfile.mkdtemp(prefix="lm-eval-"))  # before the library reads it

import lm_eval  # noqa: E402
import lm_eval.tasks  # noqa: E402

from openai_client_test import BINARY, MODEL, ROOT, Served  # noqa: E402

GOLDEN = ROOT / "tests" / "golden" / "eval"
CONTEXT = 510  # what the harness makes of max_length=512 for windows: one token is the server's, one the prefix
TEXT_METRICS = ("word_perplexity", "byte_perplexity", "bits_per_byte")


def rows_of(name):
    return [json.loads(line) for line in (GOLDEN / name).read_text().splitlines()]


def questions():
    """The rows under the names that a task of the harness needs: one text field, answers as places."""
    for row in rows_of("choices.jsonl"):
        text = next(row[name] for name in ("question", "prompt", "context") if name in row)
        answer, choices = row["answer"], row["choices"]
        if not isinstance(answer, int):
            answer = choices.index(answer) if answer in choices else int(answer) if answer.isdigit() else "abcd".index(answer.lower())
        yield {"question": text, "choices": choices, "answer": answer}


class HarnessTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.path = pathlib.Path(cls.folder.name)
        cls.served = Served("-np", "8", context=513)
        write = lambda name, rows: (cls.path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        write("choices.jsonl", questions())
        write("exact.jsonl", [{"prompt": row["prompt"], "answer": row["answer"] if isinstance(row["answer"], str) else row["answer"][-1]}
                              for row in rows_of("exact.jsonl")])
        write("texts.jsonl", [{"text": row["text"] + "\n" + " the sky is blue" * 40 * (i % 2)} for i, row in enumerate(rows_of("texts.jsonl"))])
        common = "dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {}\ntest_split: test\n"
        choice = ("task: {}\n" + common + "output_type: multiple_choice\ndoc_to_text: question\ndoc_to_choice: choices\ndoc_to_target: answer\n"
                  "fewshot_split: test\nnum_fewshot: {}\nmetric_list:\n- metric: acc\n- metric: acc_norm\n- metric: acc_bytes\n")
        tasks = {"qiao_choices": choice.format("qiao_choices", cls.path / "choices.jsonl", 0),
                 "qiao_shots": choice.format("qiao_shots", cls.path / "choices.jsonl", 3),
                 "qiao_texts": "task: qiao_texts\n" + common.format(cls.path / "texts.jsonl") + "output_type: loglikelihood_rolling\n"
                               "doc_to_text: ''\ndoc_to_target: text\nmetric_list:\n" + "".join(f"- metric: {name}\n" for name in TEXT_METRICS),
                 "qiao_exact": "task: qiao_exact\n" + common.format(cls.path / "exact.jsonl") + "output_type: generate_until\n"
                               "doc_to_text: prompt\ndoc_to_target: answer\ngeneration_kwargs:\n  until: [\"\\n\\n\"]\n  max_gen_toks: 12\n"
                               "metric_list:\n- metric: exact_match\n  ignore_case: true\nfilter_list:\n- name: plain\n  filter:\n"
                               "  - function: remove_whitespace\n  - function: take_first\n- name: word\n  filter:\n"
                               "  - function: regex\n    regex_pattern: '([a-zA-Z]+)'\n  - function: take_first\n"}
        for name, text in tasks.items():
            (cls.path / f"{name}.yaml").write_text(text)
        cls.tasks = lm_eval.tasks.TaskManager(include_path=str(cls.path), include_defaults=False)

    @classmethod
    def tearDownClass(cls):
        code = cls.served.stop()
        cls.folder.cleanup()
        if code != 0:
            raise AssertionError("the server did not end with 0")

    def harness(self, task, **more):
        # The tokenizer's BOS token has the id 0, which the harness' remote tokenizer takes for none.
        arguments = {"model": "chat", "base_url": f"http://127.0.0.1:{self.served.port}/v1/completions", "max_length": 512,
                     "custom_prefix_token_id": 0, "max_retries": 1, **more}
        found = lm_eval.simple_evaluate(model="local-completions", model_args=arguments, tasks=[task], task_manager=self.tasks,
                                        bootstrap_iters=0 if task == "qiao_texts" else 100, log_samples=False)
        return found["results"][task]

    def qiao(self, *flags):
        run = subprocess.run([BINARY, "eval", "-m", MODEL, "-q", "--json", "-c", str(CONTEXT), *flags], capture_output=True, text=True, timeout=300)
        self.assertEqual((run.returncode, run.stderr), (0, ""))
        return json.loads(run.stdout)["tasks"][0]

    def test_multiple_choice(self):
        for task, shots in (("qiao_choices", "0"), ("qiao_shots", "3")):
            ours = self.qiao("--choices", str(self.path / "choices.jsonl"), "--num-fewshot", shots)
            for way in ({"num_concurrent": 4}, {"batch_size": 5}, {"tokenized_requests": False}):
                with self.subTest(task=task, **way):
                    theirs = self.harness(task, **way)
                    for metric in ("acc", "acc_norm", "acc_bytes"):
                        self.assertAlmostEqual(theirs[f"{metric},none"], ours[metric], 12)
                        self.assertAlmostEqual(theirs[f"{metric}_stderr,none"], ours[f"{metric}_stderr"], 12)

    def test_rolling_log_likelihood(self):
        ours = self.qiao("--text", str(self.path / "texts.jsonl"))
        self.assertGreater(ours["windows"], ours["documents"] - 1)
        for way in ({"num_concurrent": 4}, {"batch_size": 3}):
            theirs = self.harness("qiao_texts", **way)
            for metric in TEXT_METRICS:
                self.assertAlmostEqual(theirs[f"{metric},none"] / ours[metric], 1, 9, metric)

    def test_generation(self):
        file = str(self.path / "exact.jsonl")
        for name, flags in (("plain", ()), ("word", ("--regex", "([a-zA-Z]+)"))):
            ours = self.qiao("--exact", file, "--max-tokens", "12", "--ignore-case", *flags)
            for way in ({"num_concurrent": 4}, {"tokenizer_backend": None}, {"batch_size": 4}):
                with self.subTest(filter=name, **way):
                    theirs = self.harness("qiao_exact", **way)
                    self.assertAlmostEqual(theirs[f"exact_match,{name}"], ours["exact_match"], 12)
                    self.assertAlmostEqual(theirs[f"exact_match_stderr,{name}"], ours["exact_match_stderr"], 12)
            if name == "plain":
                self.assertGreater(ours["exact_match"], 0)


if __name__ == "__main__":
    unittest.main()
