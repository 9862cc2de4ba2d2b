"""Every token that `qiao generate` draws, drawn once more here: from its log-probabilities, in plain Python.

The law is the contract of src/backend/ops/sample.h: bias and penalties, temperature, top-k, top-p, min-p, then the kept
token with the largest z + g, where g comes from a Philox counter of (seed, choice, position, id) alone. Log-probabilities
are logits but for a constant, which changes none of it (repetition_penalty apart, which tests/backend has).
"""
import json
import math
import os
import pathlib
import subprocess
import unittest

QIAO = os.environ["QIAO_BINARY"]
MODEL = str(pathlib.Path(__file__).resolve().parents[1] / "golden" / "chat")
TOP = 20  # as many log-probabilities as there are to be had: top_k may be no more


def philox4x32_10(counter, key):
    """Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3."""
    counter, key = list(counter), [key & 0xFFFFFFFF, key >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [(b >> 32) ^ counter[1] ^ key[0], b & 0xFFFFFFFF, (a >> 32) ^ counter[3] ^ key[1], a & 0xFFFFFFFF]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return counter


def gumbel(seed, position, token, choice=0):
    word = philox4x32_10([token // 4, position, choice, 0], seed)[token % 4]
    return -math.log(-math.log((word + 0.5) * 2.0**-32))


def draw(logprobs, generated, position, how):
    """(token, margin): the margin is by how much of a log-probability the decision was made."""
    temperature = how.get("temp", 1.0)
    values = {}
    for token, logprob in logprobs.items():
        count = generated.count(token)
        value = logprob - how.get("frequency-penalty", 0) * count - (how.get("presence-penalty", 0) if count else 0)
        values[token] = value + how.get("bias", {}).get(token, 0)
    order = sorted(values, key=lambda token: (-values[token], token))
    if temperature < 1e-30:
        return order[0], values[order[0]] - values[order[1]]
    kept = order[:how["top-k"]]
    margin = min(1, abs(values[kept[-1]] - values[order[len(kept)]]) if len(kept) < len(order) else 1)
    if values != logprobs:  # a token that is not among the known ones may have come before the last of these
        least = min(logprobs.values())
        gain = max([0] + [-how.get("frequency-penalty", 0) * generated.count(token) - how.get("presence-penalty", 0)
                          for token in set(generated) - set(logprobs)])
        margin = min(margin, values[kept[-1]] - least - gain)
    weights = [math.exp((values[token] - values[kept[0]]) / temperature) for token in kept]
    shares = [weight / sum(weights) for weight in weights]
    if how.get("top-p", 1) < 1:
        reached, count = 0.0, 0
        while count < len(kept):
            reached += shares[count]
            count += 1
            margin = min(margin, abs(reached - how["top-p"]))
            if reached >= how["top-p"]:
                break
        kept, shares = kept[:count], shares[:count]
    if how.get("min-p", 0) > 0:
        margin = min([margin] + [abs(share / shares[0] - how["min-p"]) for share in shares[1:]])
        kept = [token for token, share in zip(kept, shares) if share >= how["min-p"] * shares[0]]
    scores = sorted(((values[token] / temperature + gumbel(how["seed"], position, token), token) for token in kept), reverse=True)
    if len(scores) > 1:
        margin = min(margin, scores[0][0] - scores[1][0])
    return scores[0][1], margin


class SamplingTest(unittest.TestCase):
    def generate(self, how, tokens=48, prompt="Why is the sky blue?"):
        flags = [part for name, value in how.items() if name != "bias" for part in (f"--{name}", repr(value))]
        flags += [f"--logit-bias={token}{bias:+}" for token, bias in how.get("bias", {}).items()]
        run = subprocess.run([QIAO, "generate", "-m", MODEL, "-q", "-p", prompt, "-n", str(tokens), "--ignore-eos", "--json",
                              "--logprobs", str(TOP), *flags], capture_output=True, text=True, timeout=300)
        self.assertEqual(run.returncode, 0, run.stderr)
        return json.loads(run.stdout)

    def check(self, how):
        answer = self.generate(how)
        undecided = 0
        for index, step in enumerate(answer["logprobs"]):
            known = {entry["id"]: entry["logprob"] for entry in step["top_logprobs"]}
            self.assertEqual(len(known), TOP)
            position = answer["usage"]["prompt_tokens"] + index
            token, margin = draw(known, answer["tokens"][:index], position, how)
            if margin < 1e-4:  # a rounding may decide
                undecided += 1
            else:
                self.assertEqual(step["id"], token, f"{how}, token {index}, margin {margin}")
        self.assertLess(undecided, len(answer["tokens"]) / 3, how)
        return answer

    def test_each_option_is_the_formula(self):
        plain = {"top-k": TOP, "top-p": 1.0, "min-p": 0.0, "temp": 1.0, "seed": 11}
        answers = {}
        for change in ({}, {"temp": 0.3}, {"temp": 2.5}, {"temp": 100.0}, {"top-k": 1}, {"top-k": 5}, {"top-p": 0.5},
                       {"top-p": 0.9, "temp": 1.7}, {"min-p": 0.3}, {"min-p": 1.0}, {"top-p": 0.8, "min-p": 0.2, "top-k": 12},
                       {"frequency-penalty": 0.5, "top-k": 6}, {"presence-penalty": 1.0, "top-k": 6}, {"frequency-penalty": -0.1, "top-k": 4},
                       {"frequency-penalty": 0.7, "presence-penalty": 0.4, "temp": 0.0, "top-k": 3},
                       {"seed": 0}, {"seed": 2**64 - 1}, {"seed": 1 << 33}):
            with self.subTest(change=change):
                answers[str(change)] = self.check({**plain, **change})["tokens"]
        self.assertGreater(len({tuple(tokens) for tokens in answers.values()}), 12)

    def test_extremes(self):
        greedy = self.generate({"temp": 0.0})["tokens"]
        for how in ({"temp": 1e-9, "seed": 5}, {"temp": 1e-40, "seed": 5}, {"top-k": 1, "seed": 5}, {"top-p": 0.0, "seed": 5},
                    {"min-p": 1.0, "seed": 5, "top-k": 0, "top-p": 1.0}):
            with self.subTest(how=how):
                self.assertEqual(self.generate(how)["tokens"], greedy)

    def test_bias_chooses_and_forbids(self):
        first = self.generate({"temp": 0.0}, tokens=1)["logprobs"][0]["top_logprobs"]
        best, second, third = (entry["id"] for entry in first[:3])
        self.assertEqual(self.generate({"temp": 0.0, "bias": {best: -math.inf}}, tokens=1)["tokens"], [second])
        self.assertEqual(self.generate({"temp": 0.0, "bias": {third: 100}}, tokens=1)["tokens"], [third])
        gap = first[0]["logprob"] - first[2]["logprob"]
        self.assertEqual(self.generate({"temp": 0.0, "bias": {third: gap + 0.01}}, tokens=1)["tokens"], [third])
        self.assertEqual(self.generate({"temp": 0.0, "bias": {third: gap - 0.01}}, tokens=1)["tokens"], [best])

    def test_log_probabilities_do_not_depend_on_the_options(self):
        one = self.generate({"temp": 0.0}, tokens=1)["logprobs"][0]["top_logprobs"]
        other = self.generate({"temp": 3.0, "seed": 3, "top-k": 2, "bias": {one[0]["id"]: -5}}, tokens=1)["logprobs"][0]["top_logprobs"]
        self.assertEqual(one, other)

    def test_what_is_out_of_range_is_refused(self):
        for flags, named in ((["--temp", "1e9"], "temperature"), (["--temp", "nan"], "temperature"), (["--temp", "-1"], "temperature"),
                             (["--top-p", "1.5"], "top_p"), (["--min-p", "nan"], "min_p"), (["--top-k", "-2"], "top_k"),
                             (["--repeat-penalty", "0"], "repetition_penalty"), (["--logit-bias", "5+nan"], "logit_bias"),
                             (["--logit-bias", "5+inf"], "logit_bias"), (["--logit-bias", "99999+1"], "logit_bias"),
                             (["--frequency-penalty", "nan"], "frequency_penalty")):
            run = subprocess.run([QIAO, "generate", "-m", MODEL, "-q", "-p", "x", "-n", "1", *flags], capture_output=True, text=True)
            self.assertEqual((run.returncode, run.stdout), (1, ""), flags)
            self.assertIn(named, run.stderr)
            self.assertEqual(run.stderr.count("\n"), 1)


if __name__ == "__main__":
    unittest.main()
