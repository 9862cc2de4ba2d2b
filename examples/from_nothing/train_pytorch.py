#!/usr/bin/env python3
"""The same run as `qiao train pretrain` by PyTorch and Transformers: same first weights, batches, AdamW and schedule, float32.

  train_pytorch.py --init DIR --data ROWS.jsonl --validation ROWS.jsonl --steps 800 --lr 3e-3 --warmup 40 --out RUN

Rows are {"tokens": [ids]} of one length, taken in their order. RUN/metrics.jsonl has what `qiao plot` draws, RUN/model the model.
Needs torch and transformers.
"""
import argparse
import json
import math
import pathlib
import time

import torch
import transformers


def read_rows(path):
    return torch.tensor([json.loads(line)["tokens"] for line in open(path, encoding="utf-8")])


def rate(options, step):
    """Of the step, from 1 on: linear warm-up, then a cosine down to --min-lr of it."""
    if step <= options.warmup:
        return options.lr * step / options.warmup
    share = (step - options.warmup) / max(options.steps - options.warmup, 1)
    return options.lr * (options.min_lr + (1 - options.min_lr) * (1 + math.cos(math.pi * share)) / 2)


def loss_of(model, ids, reduction="mean"):
    logits = model(ids, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction=reduction)


@torch.no_grad()
def validation_loss(model, rows, batch):
    total = sum(loss_of(model, part, "sum").double().item() for part in rows.split(batch))
    return total / rows[:, 1:].numel()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--validation", required=True)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--min-lr", type=float, default=0.1)
    parser.add_argument("--warmup", type=int, default=0)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--validate-every", type=int, default=100)
    options = parser.parse_args()
    rows, held_out = read_rows(options.data), read_rows(options.validation)
    model = transformers.AutoModelForCausalLM.from_pretrained(options.init, dtype=torch.float32, attn_implementation="sdpa").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, betas=(0.9, 0.95), eps=1e-8,
                                  weight_decay=options.weight_decay, fused=True)
    options.out.mkdir(parents=True, exist_ok=True)
    with open(options.out / "metrics.jsonl", "w", encoding="utf-8") as metrics:
        for step in range(1, options.steps + 1):
            begin = time.perf_counter()
            at = (step - 1) * options.batch
            ids = torch.stack([rows[(at + i) % len(rows)] for i in range(options.batch)])
            optimizer.param_groups[0]["lr"] = rate(options, step)
            loss = loss_of(model, ids)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            line = {"step": step, "loss": loss.item(), "grad_norm": norm.item(), "lr": rate(options, step),
                    "tokens_per_second": ids.numel() / (time.perf_counter() - begin)}
            if step % options.validate_every == 0 or step == options.steps:
                line["validation_loss"] = validation_loss(model, held_out, options.batch)
            metrics.write(json.dumps(line) + "\n")
            metrics.flush()
            if step % 10 == 0 or "validation_loss" in line:
                held = f"  validation_loss {line['validation_loss']:.4f}" if "validation_loss" in line else ""
                print(f"step {step}/{options.steps}  loss {line['loss']:.4f}{held}", flush=True)
    model.save_pretrained(options.out / "model")
    transformers.AutoTokenizer.from_pretrained(options.init).save_pretrained(options.out / "model")


if __name__ == "__main__":
    main()
