#!/usr/bin/env python3
"""Makes tests/golden/eval: files to be evaluated, and what lm-evaluation-harness' definitions make of them.

The model is tests/golden/chat in float64 by Transformers. The definitions are written down here once more from the
harness' documentation (rolling windows, pairs of context and continuation, filters), with Python's own str, re and random.
tests/serve/lm_eval_client_test.py compares with the harness itself.

  make_eval.py FOLDER      writes FOLDER/eval
"""
import json
import math
import pathlib
import random
import re
import string
import sys

import torch
import transformers

HERE = pathlib.Path(__file__).parent
TEXTS = ["The sky is blue because air scatters blue light more than red light.", "A bridge carries people over a river;\n\nthis one "
         "carries words.\t", "桥 means bridge. 你好，世界！\u3000Numbers:\u00a01 2 3", " def add(a, b):\n    return a + b\n" * 12, "", " "]
SKY = ["blue", "red", "as green as grass", "桥"]
QUESTIONS = [
    {"question": "Why is the sky", "choices": SKY, "answer": 0}, {"prompt": "Why is the sea ", "choices": SKY, "answer": "B"},
    {"context": "The colour of grass is\n", "choices": SKY, "answer": "as green as grass"}, {"question": "", "choices": ["The", "Zz"], "answer": 1},
    {"question": "1 2 3 4", "choices": ["5", "six", "0"], "answer": "5"}, {"question": "def add(a, b):", "choices": ["return a + b", "pass"], "answer": "a"},
    {"question": "桥 means", "choices": ["bridge", "river", "你好", "world", "!"], "answer": "2"},
    {"question": "A bridge carries people over a river; this one carries", "choices": ["words", "people"], "answer": 0}]
PROMPTS = ["Why is the sky blue?", "A bridge carries", "Numbers: 0 1 2 3", "def add(a, b):", "桥 means", "The sky is"]
WORDS = ["", " ", "one", " one", "one two", "one  two\n", "a\u00a0b\u3000c\u2009d", "a\x1cb\x1fc", "a\u200bb", "a\x85b\x0bc", "\ufeffa b"]
PATTERNS = [(r"(-?[0-9]+)", 0), (r"(-?[$0-9.,]{2,})|(-?[0-9]+)", -1), (r"#### (\-?[0-9\.\,]+)", 0), (r"[a-z]+", 1), (r"\d*", 0), (r"(?P<n>\w+)!", 0),
            (r"^x(.*)$", 0), (r"(a)|(b)|()", 2), (r"\s(\S+)\s", 0)]
SAID = ["The answer is 42.", "#### 1,234 and -7", "x one two", " b a!", "", "桥 says 你好!", "12 apples, 7.5 pears"]


def log_likelihoods(model, tokens, first):
    with torch.no_grad():
        logits = model(torch.tensor([tokens[:-1]])).logits[0]
    chosen = torch.log_softmax(logits, -1)[torch.arange(len(tokens) - 1), torch.tensor(tokens[1:])]
    return chosen[first - 1:].sum().item()


def rolling(tokens, prefix, window, context):
    """lm_eval.utils.get_rolling_token_windows: (input, predicted) pairs."""
    if not tokens:
        return
    first = min(window, len(tokens))
    yield [prefix] + tokens[:first - 1], tokens[:first]
    done = first
    while done < len(tokens):
        count = min(len(tokens) - done, window - context + 1)
        end = done + count
        yield tokens[end - window - 1:end - 1], tokens[end - count:end]
        done += count


def pair(tokenizer, context, continuation):
    encode = lambda text: tokenizer(text, add_special_tokens=False).input_ids
    if not context:
        return [tokenizer.bos_token_id], encode(continuation)
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    ids = encode(context)
    return ids, encode(context + continuation)[len(ids):]


def mean(values):
    mu = sum(values) / len(values)
    return [mu, math.sqrt(sum((x - mu) ** 2 for x in values) / (len(values) - 1)) / math.sqrt(len(values))]


def gold(row):
    answer = row["answer"]
    if isinstance(answer, int):
        return answer
    if answer in row["choices"]:
        return row["choices"].index(answer)
    return int(answer) if answer.isdigit() else "abcdefgh".index(answer.lower())


def choices_of(model, tokenizer, rows, contexts):
    sums, acc, norm, by_bytes = [], [], [], []
    for row, context in zip(rows, contexts, strict=True):
        lls = []
        for choice in row["choices"]:
            a, b = pair(tokenizer, context, " " + choice)
            lls.append(log_likelihoods(model, a + b, len(a)))
        best = lambda values: max(range(len(values)), key=lambda i: (values[i], -i))
        acc.append(float(best(lls) == gold(row)))
        norm.append(float(best([x / len(c) for x, c in zip(lls, row["choices"])]) == gold(row)))
        by_bytes.append(float(best([x / len(c.encode()) for x, c in zip(lls, row["choices"])]) == gold(row)))
        sums.append(lls)
    return {"log_likelihoods": sums, "acc": mean(acc), "acc_norm": mean(norm), "acc_bytes": mean(by_bytes)}


def text_of(row):
    return next(row[name] for name in ("question", "prompt", "context") if name in row)


def shots_of(rows, count, seed):
    """lm_eval.api.samplers.ContextSampler over the questions' own file."""
    draw = random.Random(seed)
    contexts = []
    for row in rows:
        shots = [x for x in draw.sample(rows, count + 1) if x != row][:count]
        contexts.append("".join(f"{text_of(s)} {s['choices'][gold(s)]}\n\n" for s in shots) + text_of(row))
    return contexts


def filtered(pattern, index, said):
    found = re.findall(pattern, said)
    if not found or not -len(found) <= index < len(found):
        return "[invalid]"
    match = found[index]
    if isinstance(match, tuple):
        match = next((m for m in match if m), "[invalid]")
    return match.strip()


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else HERE) / "eval"
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(HERE / "chat")
    model = transformers.AutoModelForCausalLM.from_pretrained(HERE / "chat", dtype=torch.float64, attn_implementation="eager")
    write = lambda name, rows: (folder / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    expected = {"texts": [], "words": [[text, len(re.split(r"\s+", text))] for text in WORDS]}

    write("texts.jsonl", [{"text": text} for text in TEXTS])
    for window, stride in ((500, 500), (24, 24), (24, 5), (7, 1)):
        total, tokens, documents = 0.0, 0, []
        for text in TEXTS:
            ids, sum_ = tokenizer(text, add_special_tokens=False).input_ids, 0.0
            for given, predicted in rolling(ids, tokenizer.bos_token_id, window, window - stride + 1):
                sum_ += log_likelihoods(model, given + predicted[-1:], len(given) - len(predicted) + 1)
            documents.append(sum_)
            tokens += len(ids)
        total = sum(documents)
        words, size = sum(len(re.split(r"\s+", text)) for text in TEXTS), sum(len(text.encode()) for text in TEXTS)
        expected["texts"].append({
            "seq": window, "stride": stride, "documents": documents, "tokens": tokens, "words": words, "bytes": size,
            "word_perplexity": math.exp(-total / words), "byte_perplexity": math.exp(-total / size),
            "bits_per_byte": -total / size / math.log(2), "token_perplexity": math.exp(-total / tokens)})

    write("choices.jsonl", QUESTIONS)
    expected["choices"] = choices_of(model, tokenizer, QUESTIONS, [text_of(row) for row in QUESTIONS])
    expected["choices_3_shots"] = choices_of(model, tokenizer, QUESTIONS, shots_of(QUESTIONS, 3, 1234))

    exact, said = [], []
    for i, prompt in enumerate(PROMPTS):
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
        out = model.generate(ids, do_sample=False, max_new_tokens=12, pad_token_id=0)[0, ids.shape[1]:]
        text = tokenizer.decode(out, skip_special_tokens=True).split("\n\n")[0]
        said.append(text)
        word = re.sub(f"[{re.escape(string.punctuation)}]", "", text).upper()
        exact.append({"prompt": prompt, "answer": [text, word, "no", ["neither", text]][i % 4]})
    write("exact.jsonl", exact)
    as_list = [row["answer"] if isinstance(row["answer"], list) else [row["answer"]] for row in exact]
    bare = lambda text: text.lower().translate(str.maketrans("", "", string.punctuation))
    expected["exact"] = {"generated": said,
                         "exact_match": mean([float(any(a.strip() == s.strip() for a in answers)) for s, answers in zip(said, as_list)]),
                         "ignoring": mean([float(any(bare(a.strip()) == bare(s.strip()) for a in answers)) for s, answers in zip(said, as_list)])}
    expected["filters"] = [[p, i, s, filtered(p, i, s)] for p, i in PATTERNS for s in SAID]
    expected["samples"] = []
    for seed in (0, 1234, 2**40 + 7):
        draw = random.Random(seed)
        expected["samples"] += [[seed, [[n, k, draw.sample(range(n), k)] for n, k in ((8, 4), (1, 1), (5, 0), (100, 5), (100, 6), (86, 6), (1000, 33), (21, 21))]]]
    (folder / "expected.json").write_text(json.dumps(expected, ensure_ascii=False, indent=0) + "\n")


if __name__ == "__main__":
    main()
