#!/usr/bin/env python3
"""Trains the tiny models of tests/golden/training with PyTorch, in float64, float32 and bfloat16, on data that can be
learnt.

  make_training.py FOLDER [NAME…]   writes FOLDER/training, as it belongs into tests/golden, of all models or of these

training/NAME/init is the model before the first step, training/data.jsonl the rows, 4 of them a step in their order;
expected.json has of each of 50 steps the loss and the gradient's norm before clipping (torch.optim.AdamW, clip_grad_norm_
to 1). muon.json, of llama, has the same in float64 and float32 where torch.optim.Muon trains the layers' matrices (rate
0.01, or 0.001 as match_rms_adamw adjusts it) and AdamW the rest; its five steps of Newton and Schulz are computed in the
dtype of the gradient rather than in bfloat16. bfloat16 is torch.autocast over float32 weights, the loss from float32 logits. No model has a padding token: PyTorch
would keep its row of the embedding as it is. Mixtures of experts learn without the routers' auxiliary loss, as Transformers
has it by default, but for qwen3-moe-balanced, whose configuration asks for it.
"""
import json
import pathlib
import random
import sys

import torch
from transformers import (AutoModelForCausalLM, Gemma3TextConfig, HunYuanMoEV1Config, LlamaConfig, Qwen3Config,
                          Qwen3MoeConfig)

VOCABULARY, LENGTH, BATCH, STEPS = 96, 32, 4, 50


def rows():
    drawn = random.Random(3)
    made = []
    for _ in range(BATCH * STEPS):
        first, stride = drawn.randrange(VOCABULARY), drawn.randrange(1, 7)
        made.append([(first + stride * i + i * i % 3) % VOCABULARY for i in range(LENGTH)])
    return made


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)


def newton_schulz(gradient, coefficients, steps, eps):
    """torch.optim._muon's own, but not in bfloat16."""
    a, b, c = coefficients
    x = gradient.T if gradient.size(0) > gradient.size(1) else gradient
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if gradient.size(0) > gradient.size(1) else x


def muon(adjustment, rate):
    torch.optim._muon._zeropower_via_newtonschulz = newton_schulz

    def optimizers(model):
        hidden = {name for name, p in model.named_parameters() if ".layers." in name and p.dim() == 2}
        return [torch.optim.Muon([p for name, p in model.named_parameters() if name in hidden], lr=rate, weight_decay=0.1,
                                 momentum=0.95, nesterov=True, adjust_lr_fn=adjustment),
                adamw([p for name, p in model.named_parameters() if name not in hidden])]
    return optimizers


def train(folder, data, dtype, optimizers=lambda model: [adamw(model.parameters())]):
    autocast = dtype == torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                                 experts_implementation="eager").to(torch.float32 if autocast else dtype)
    made = optimizers(model)
    steps = []
    for step in range(STEPS):
        ids = torch.tensor(data[step * BATCH:(step + 1) * BATCH])
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs = model(ids)
        logits = outputs.logits.float() if autocast else outputs.logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, VOCABULARY), ids[:, 1:].reshape(-1))
        if getattr(model.config, "output_router_logits", False):
            loss = loss + model.router_aux_loss_coef * outputs.aux_loss
        model.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in made:
            optimizer.step()
        steps.append([loss.item(), norm.item()])
    return steps


SHAPE = dict(vocab_size=VOCABULARY, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=16, max_position_embeddings=256, initializer_range=0.08, pad_token_id=None,
             bos_token_id=None, eos_token_id=None)
MODELS = {
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=False, attention_bias=True),
    "qwen3": Qwen3Config(**SHAPE, tie_word_embeddings=False),
    "gemma3": Gemma3TextConfig(**SHAPE, tie_word_embeddings=True, sliding_window=8, query_pre_attn_scalar=16,
                               layer_types=["sliding_attention", "full_attention"]),
    "qwen3-moe": Qwen3MoeConfig(**SHAPE, tie_word_embeddings=False, num_experts=5, num_experts_per_tok=2,
                                moe_intermediate_size=24, norm_topk_prob=True),
    "qwen3-moe-unnormalised": Qwen3MoeConfig(**SHAPE, tie_word_embeddings=True, num_experts=4, num_experts_per_tok=3,
                                             moe_intermediate_size=16, norm_topk_prob=False, mlp_only_layers=[0]),
    "qwen3-moe-balanced": Qwen3MoeConfig(**{**SHAPE, "num_hidden_layers": 3}, tie_word_embeddings=False, num_experts=6,
                                         num_experts_per_tok=2, moe_intermediate_size=16, norm_topk_prob=True,
                                         mlp_only_layers=[1], output_router_logits=True, router_aux_loss_coef=0.1),
    "hunyuan-moe": HunYuanMoEV1Config(**{**SHAPE, "intermediate_size": 24}, tie_word_embeddings=False, num_experts=4,
                                      moe_topk=2),
}


def main():
    torch.set_num_threads(1)
    folder = pathlib.Path(sys.argv[1]) / "training"
    folder.mkdir(parents=True, exist_ok=True)
    data = rows()
    (folder / "data.jsonl").write_text("".join(json.dumps({"tokens": row}) + "\n" for row in data))
    for name in sys.argv[2:] or MODELS:
        config = MODELS[name]
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():  # norms and biases that say something
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(folder / name / "init")
        expected = {kind: train(folder / name / "init", data, dtype)
                    for kind, dtype in (("float64", torch.float64), ("float32", torch.float32),
                                         ("bfloat16", torch.bfloat16))}
        (folder / name / "expected.json").write_text(json.dumps(expected, indent=0) + "\n")
    if "llama" in (sys.argv[2:] or MODELS):
        expected = {adjustment: {kind: train(folder / "llama" / "init", data, dtype, muon(adjustment, rate))
                                 for kind, dtype in (("float64", torch.float64), ("float32", torch.float32))}
                    for adjustment, rate in (("original", 0.01), ("match_rms_adamw", 0.001))}
        (folder / "llama" / "muon.json").write_text(json.dumps(expected, indent=0) + "\n")


if __name__ == "__main__":
    main()
