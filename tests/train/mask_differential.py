#!/usr/bin/env python3
"""Compares the tokens and masks of conversations with Transformers', for the chat templates that models were published
with (those that llama.cpp's sources carry).

    python3 tests/train/mask_differential.py [--qiao build/bin/qiao] [--cache FOLDER] [NAME…]      needs transformers, torch

For each template a byte-level tokenizer is made that has the template's special tokens. Expected is, answer by answer,
what Transformers' render of the conversation so far adds to the prompt that a server would begin from, up to the token
that ends the turn, found in the render of the whole conversation; where an earlier answer is written otherwise than a
last one (thoughts are left out), its text.
"""
import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "chat"))
import published_templates  # noqa: E402

ENDS = ["<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "</s>", "<|END_OF_TURN_TOKEN|>", "<|eom_id|>", "<|return|>",
        "<｜end▁of▁sentence｜>", "<|endoftext|>", "<|eot|>", "<turn|>", "<|user_end|>", "<|end_of_text|>", "<seed:eos>",
        "<|message_sep|>", "<end_of_sentence>", "[e~[", "<|role_end|>", "<sep>", "<SPECIAL_12>", "<|end_of_msg|>"]
SPECIAL = re.compile(r"<[|｜][^<>|｜]{1,40}[|｜]>|</?(?:s|start_of_turn|end_of_turn|bos|eos)>|<(?:start|end)_of_turn>|\[/?INST\]")


# Where there is no one answer: why.
KNOWN = {"Qwen-QwQ-32B": "this copy's prompt closes the thoughts that its render of a last answer has"}


def chat(*texts, system=None):
    messages = [{"role": "system", "content": system}] if system else []
    return messages + [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]


CHATS = [chat("Hi", "Hello."), chat("One", "Uno#", "Two", "Due# e due", "Three", "Tre#"), chat("Q", "A: 桥\n\n- b\n- c", "R", "{}", system="Be brief."),
         chat("Think", "<think>\nhm\n</think>\n\nDone", "More", "<think>\nhm, hm\n</think>\n\nDone too"),
         chat("Tags", "<t> is a tag", "And?", "<think is none")]


def make_model(folder, template, base):
    special = list(dict.fromkeys(SPECIAL.findall(template) + ENDS + ["<s>", "<unk>"]))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    eos = next((token for token in ENDS if token in template), "</s>")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": eos, "add_bos_token": False}))
    (folder / "chat_template.jinja").write_text(template)
    config = json.loads((base / "config.json").read_text())
    config["vocab_size"] = tokenizer.get_vocab_size()
    (folder / "config.json").write_text(json.dumps(config))


def render(tokenizer, messages, prompt):
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)


def shown_in(text, at, content):
    """The content, or what is left of it without its thoughts."""
    return content.strip() if content.strip() in text[at:] else content.split("</think>")[-1].strip()


def turn_in(text, at, content):
    """The span from `at` to the end of the first token that ends a turn behind `content`."""
    shown = shown_in(text, at, content)
    start = text.index(shown, at) + len(shown)
    ends = [match.end() for end in ENDS for match in [re.search(re.escape(end), text[start:])] if match]
    return at, start + (min(ends) if ends else 0)


def opening_end(tokenizer, whole, opening, after, content):
    """Where what opens an answer ends in `whole`: the longest part of whole tokens that stands between the last
    answer and this one's content."""
    for end in sorted({b for _, b in tokenizer(opening, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]},
                      reverse=True):
        part = opening[:end].rstrip("<|[")
        found = whole.rfind(part, max(after, content - 60), content)
        if part and found >= 0:
            return found + len(part)
    return content


def expected(tokenizer, messages):
    if "{% generation" in tokenizer.chat_template or "{%- generation" in tokenizer.chat_template:
        out = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        return out["input_ids"], [bool(each) for each in out["assistant_masks"]]
    whole = render(tokenizer, messages, False)
    spans, at = [], 0
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = render(tokenizer, messages[:i], True)
        if whole.startswith(prompt):
            at = len(prompt)
        else:  # the prompt opens thoughts that a past answer does not have, or what came before was written with its own
            at = opening_end(tokenizer, whole, prompt[len(os.path.commonprefix([prompt, render(tokenizer, messages[:i], False)])):],
                             at, whole.index(shown_in(whole, at, message["content"]), at))
        spans.append(turn_in(whole, at, message["content"]))
        at = spans[-1][1]
    encoding = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    tokens = encoding["input_ids"]
    mask = [any(begin < b and e > a for a, b in spans for begin, e in [offset]) for offset in encoding["offset_mapping"]]
    return tokens, mask


def compare(qiao, template, name, base):
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        make_model(folder, template, base)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        counts = {"alike": 0, "refused": 0}
        for messages in CHATS:
            (folder / "row.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
            run = subprocess.run([qiao, "data", "inspect", "--init", folder, "--data", folder / "row.jsonl", "--mode", "finetune",
                                  "--seq", "20000", "--batch", "1", "--json"], capture_output=True, text=True)
            try:
                tokens, mask = expected(tokenizer, messages)
            except Exception as error:
                counts["refused"] += 1
                if run.returncode == 0:
                    print(f"{name}: only Transformers refuses {messages}: {str(error)[:200]}")
                continue
            if run.returncode != 0:
                print(f"{name}: {run.stderr.strip()[-300:]}")
                return False
            document = json.loads(run.stdout)["sequences"][0]["documents"][0]
            if document["tokens"] != tokens or document["loss"] != mask:
                ours = "".join(t for t, l in zip(document["texts"], document["loss"]) if l)
                theirs = tokenizer.decode([t for t, l in zip(tokens, mask) if l])
                print(f"{name}: {messages}\n  tokens alike: {document['tokens'] == tokens}\n  qiao     {ours!r}\n  expected {theirs!r}")
                return False
            counts["alike"] += 1
        print(f"{name}: {counts['alike']} alike" + (f", {counts['refused']} refused by both" if counts["refused"] else ""))
        return counts["alike"] + counts["refused"] > 0


def main():
    root = pathlib.Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qiao", default=root / "build" / "bin" / "qiao")
    parser.add_argument("--cache", type=pathlib.Path,
                        default=pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "qiao-tests")
    parser.add_argument("names", nargs="*")
    flags = parser.parse_args()
    templates = sorted(published_templates.fetch(flags.cache).glob("*.jinja"))
    for name, why in KNOWN.items():
        print(f"{name} is left out: {why}")
    templates = [path for path in templates if path.stem not in KNOWN]
    failed = [path.stem for path in templates if not flags.names or path.stem in flags.names
              if not compare(flags.qiao, path.read_text(), path.stem, root / "tests" / "golden" / "chat")]
    print(f"{len(failed)} differ: {', '.join(failed)}" if failed else "all alike")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
