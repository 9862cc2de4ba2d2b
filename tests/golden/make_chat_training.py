#!/usr/bin/env python3
"""Makes tests/golden/chat_training: which tokens of conversations carry loss, by Transformers, and how a model is taught
by them, by PyTorch.

The templates here mark what the assistant writes with {% generation %}, and Transformers' assistant mask is what is
expected of Qiao for them, and for the same templates without the marks, where it has to find the answers itself.

finetune.json and preference.json: loss and gradient norm of each of 8 steps of tests/golden/chat's model, in float64 and
float32; the loss of preferences is DPO's as TRL writes it. slopes.json: that loss alone and its derivatives.

  make_chat_training.py [FOLDER]      writes FOLDER/chat_training (needs tests/golden/chat)
"""
import json
import pathlib
import sys

import torch
import torch.nn.functional as F
import transformers

HEAD = "{%- for message in messages %}"
ANSWER = "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
OTHER = "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
OPEN = "{{- '<|im_start|>assistant\\n' }}"
IF_ANSWER = "{%- if message['role'] == 'assistant' %}"
PROMPT = "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
TEMPLATES = {
    "plain": HEAD + IF_ANSWER + OPEN + ANSWER + "{%- else %}" + OTHER + "{%- endif %}" + PROMPT,
    # The text's end is another token than the turn's.
    "end_of_text": HEAD + IF_ANSWER + OPEN + ANSWER + "{%- else %}" + OTHER + "{%- endif %}"
                   "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
                   "{%- else %}{{- '<|endoftext|>' }}{%- endif %}",
    # Nothing opens an answer; spaces around it are the model's.
    "no_opening": HEAD + IF_ANSWER + "{% generation %}{{- ' ' + message['content'] | trim + ' <|im_end|>' }}"
                  "{% endgeneration %}{%- else %}{{- '[INST] ' + message['content'] + ' [/INST]' }}{%- endif %}{%- endfor %}",
    # Nothing ends a turn but the next one's name.
    "names": HEAD + IF_ANSWER + "{{- 'Assistant: ' }}{% generation %}{{- message['content'] }}{% endgeneration %}"
             "{{- '\\n\\n' }}{%- else %}{{- message['role'] | capitalize + ': ' + message['content'] + '\\n\\n' }}{%- endif %}"
             "{%- endfor %}{%- if add_generation_prompt %}{{- 'Assistant: ' }}{%- endif %}",
    # Thoughts stay only behind the last question, where they are written even if there are none.
    "thoughts": "{%- set ns = namespace(last=0) %}{%- for message in messages %}{%- if message['role'] == 'user' %}"
                "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}" + HEAD + IF_ANSWER + OPEN +
                "{%- set parts = message['content'].split('</think>') %}{% generation %}"
                "{%- if loop.index0 > ns.last %}{{- '<think>\\n' + (parts[0].split('<think>')[-1] | trim if parts | length > 1 else '')"
                " + '\\n</think>\\n\\n' }}{%- endif %}{{- parts[-1] | trim + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
                "{%- else %}" + OTHER + "{%- endif %}" + PROMPT,
    # The prompt opens the thoughts, and past answers show none.
    "opened_thoughts": "{%- set ns = namespace(last=0) %}{%- for message in messages %}{%- if message['role'] == 'user' %}"
                       "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}" + HEAD + IF_ANSWER + OPEN +
                       "{%- set parts = message['content'].split('</think>') %}"
                       "{%- if loop.index0 > ns.last %}{{- '<think>\\n' }}{%- endif %}{% generation %}"
                       "{%- if loop.index0 > ns.last %}{{- (parts[0].split('<think>')[-1] | trim if parts | length > 1 else '')"
                       " + '\\n</think>\\n\\n' }}{%- endif %}{{- parts[-1] | trim + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
                       "{%- else %}" + OTHER + "{%- endif %}"
                       "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}",
}


def chat(*texts, system=None):
    messages = [{"role": "system", "content": system}] if system else []
    for i, text in enumerate(texts):
        messages.append({"role": "user" if i % 2 == 0 else "assistant", "content": text})
    return messages


CHATS = [
    chat("Why is the sky blue?", "Air scatters blue light."),
    chat("Say air", "air", "Again: air", "air", "Once more", "air air", system="Answer in one word."),
    chat("Think", "<think>\nOne, two.\n</think>\n\nThree.", "And?", "<think>\nFour\n</think>\n\nFive: <done>."),
    chat("Empty thoughts", "Six", "More?", "<tool> seven", "and", "eight"),
    # Two answers behind one question: the thoughts of both are the last ones until another question comes.
    [{"role": "user", "content": "A"}, {"role": "assistant", "content": "<think>\nx\n</think>\n\nB"},
     {"role": "system", "content": "C"}, {"role": "assistant", "content": "<think>\ny\n</think>\n\nD"},
     {"role": "user", "content": "E"}, {"role": "assistant", "content": "<think>\nz\n</think>\n\nF"}],
    chat("桥?", "A bridge: 桥, ünïcödé 🌉.", "numbers", "1 2 3\n\n4"),
]
PAIRS = [{"prompt": "Why?", "chosen": "Because air scatters light.", "rejected": "No."},
         {"prompt": chat("One", "1", "Two"), "chosen": [{"role": "assistant", "content": "2"}],
          "rejected": [{"role": "assistant", "content": "a river; words"}]},
         {"chosen": chat("A bridge", "carries people"), "rejected": chat("A bridge", "carries blue light")},
         {"prompt": "add", "chosen": "def add(a, b):\n    return a + b", "rejected": "The sky"}]


def masked(tokenizer, template, messages):
    out = tokenizer.apply_chat_template(messages, chat_template=template, return_dict=True, return_assistant_tokens_mask=True)
    return out["input_ids"], out["assistant_masks"]


def batch_loss(model, documents):
    """-log p summed over tokens that carry loss, and how many there are."""
    total, count = 0, 0
    for tokens, mask in documents:
        total = total - answer_logprob(model, tokens, mask)
        count += sum(mask[1:])
    return total / count


def answer_logprob(model, tokens, mask):
    logits = model(torch.tensor([tokens])).logits[0, :-1]
    logprobs = torch.log_softmax(logits, -1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
    return (logprobs * torch.tensor(mask[1:], dtype=logprobs.dtype)).sum()


def dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta, smoothing, kind):
    logits = (policy_chosen - policy_rejected) - (reference_chosen - reference_rejected)
    if kind == "ipo":
        return (logits - 1 / (2 * beta)) ** 2
    return -F.logsigmoid(beta * logits) * (1 - smoothing) - F.logsigmoid(-beta * logits) * smoothing


def train(folder, dtype, step_loss, rate, steps=8):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "chat", dtype=dtype, attn_implementation="eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    records = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = step_loss(model, step)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        records.append([loss.item(), norm.item()])
    return records


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent)
    out = folder / "chat_training"
    out.mkdir(exist_ok=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "chat")
    write = lambda name, value: (out / name).write_text(json.dumps(value, ensure_ascii=False) + "\n")

    cases = []
    for name, template in TEMPLATES.items():
        for messages in CHATS:
            tokens, mask = masked(tokenizer, template, messages)
            cases.append({"template": name, "messages": messages, "tokens": tokens, "mask": mask})
    write("masks.json", {"templates": TEMPLATES, "cases": cases})

    plain = TEMPLATES["plain"]
    rows = [masked(tokenizer, plain, messages) for messages in CHATS[:4]]
    (out / "chats.jsonl").write_text("".join(json.dumps({"messages": m}, ensure_ascii=False) + "\n" for m in CHATS[:4]))
    finetune = lambda model, step: batch_loss(model, [rows[(2 * step + i) % 4] for i in range(2)])
    write("finetune.json", {str(d).split(".")[1]: train(folder, d, finetune, 1e-3) for d in (torch.float64, torch.float32)})

    pairs = []
    for row in PAIRS:
        prompt = row.get("prompt", [])
        prompt = chat(prompt) if isinstance(prompt, str) else prompt
        pair = []
        for key in ("chosen", "rejected"):
            answer = row[key] if isinstance(row[key], list) else [{"role": "assistant", "content": row[key]}]
            tokens, mask = masked(tokenizer, plain, prompt + answer)
            # Of earlier answers nothing is learnt.
            question = len(tokenizer.apply_chat_template((prompt + answer)[:-1], chat_template=plain, return_dict=False,
                                                         add_generation_prompt=True))
            pair.append((tokens, [m if i >= question else 0 for i, m in enumerate(mask)]))
        pairs.append(pair)
    (out / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    expected = {}
    for kind, smoothing in (("sigmoid", 0.0), ("sigmoid", 0.1), ("ipo", 0.0)):
        for dtype in (torch.float64, torch.float32):
            frozen = transformers.AutoModelForCausalLM.from_pretrained(folder / "chat", dtype=dtype, attn_implementation="eager")

            def logprobs(model, pair):
                values = [answer_logprob(model, *document) for document in pair]
                return [v / sum(m[1:]) for v, (_, m) in zip(values, pair)] if kind == "ipo" else values

            def preference(model, step):
                losses = []
                for i in range(2):
                    pair = pairs[(2 * step + i) % 4]
                    with torch.no_grad():
                        reference = logprobs(frozen, pair)
                    losses.append(dpo_loss(*logprobs(model, pair), *reference, 0.5, smoothing, kind))
                return sum(losses) / len(losses)

            expected.setdefault(f"{kind} {smoothing}", {})[str(dtype).split(".")[1]] = train(folder, dtype, preference, 1e-4)
    write("preference.json", expected)

    slopes = []
    for kind, smoothing in (("sigmoid", 0.0), ("sigmoid", 0.2), ("ipo", 0.0)):
        for beta in (0.05, 0.5):
            for values in ([-10.0, -12.0, -11.0, -11.5], [-400.0, -20.0, -30.0, -30.0], [-1.0, -900.0, -2.0, -2.0]):
                policy = torch.tensor(values[:2], dtype=torch.float64, requires_grad=True)
                loss = dpo_loss(policy[0], policy[1], values[2], values[3], beta, smoothing, kind)
                loss.backward()
                slopes.append({"loss": kind, "smoothing": smoothing, "beta": beta, "logprobs": values,
                               "value": loss.item(), "slopes": policy.grad.tolist()})
    write("slopes.json", slopes)


if __name__ == "__main__":
    main()
