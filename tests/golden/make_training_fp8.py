#!/usr/bin/env python3
"""Trains a tiny model with PyTorch whose linear layers compute in FP8 as `qiao train --dtype fp8` does, beside float64.

  make_training_fp8.py FOLDER   writes FOLDER/training/fp8, as it belongs into tests/golden

fp8/init is the model before the first step, in bfloat16; the rows are make_training.py's data.jsonl. "fp8" of expected.json is
float64 but for what is rounded to E4M3 (torch.float8_e4m3fn) and back: of each linear layer of a decoder layer whose rows are
whole blocks of 128, x and the weight of the forward pass, dy and the weight of dx, and dy and x of dw, with the scales of
DeepSeek-V3's Technical Report, section 3.3 (x and dy of 128 numbers of a token, for dw of 128 tokens of a column, weights of
128 x 128, of the weights as bfloat16; the last block may have fewer). "float64" and "float32" round nothing. Each lists 50 steps' loss and norm of the
gradient. first_step.safetensors has the first rows of each layer's matrices' gradients in the first step, as KIND.TENSOR; its
"forward" rounds on the way there alone.
"""
import json
import pathlib
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from make_training import BATCH, STEPS, VOCABULARY, adamw, rows

BLOCK, MOST, SMALLEST, KEPT_ROWS = 128, 448.0, 2.0**-100, 6
CONFIG = LlamaConfig(vocab_size=VOCABULARY, hidden_size=128, intermediate_size=144, num_hidden_layers=2,
                     num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=256,
                     initializer_range=0.06, tie_word_embeddings=False, attention_bias=True, pad_token_id=None,
                     bos_token_id=None, eos_token_id=None)


def scaled(block, most):
    """Through E4M3 with the scale most / 448; the scale and the quotients in float32."""
    numbers = (block * (MOST / most)).to(torch.float8_e4m3fn)
    return torch.where(most < SMALLEST, 0.0, numbers.double() * (most / MOST).double())


def rounded_rows(x):
    """x [R, C] in blocks of 1 x 128."""
    blocks = [x[:, c:c + BLOCK].float() for c in range(0, x.shape[1], BLOCK)]
    return torch.cat([scaled(block, block.abs().amax(1, keepdim=True)) for block in blocks], dim=1)


def rounded_squares(w):
    """w [N, K] in blocks of 128 x 128."""
    made = torch.empty_like(w, dtype=torch.float64)
    for n in range(0, w.shape[0], BLOCK):
        for k in range(0, w.shape[1], BLOCK):
            block = w[n:n + BLOCK, k:k + BLOCK].float()
            made[n:n + BLOCK, k:k + BLOCK] = scaled(block, block.abs().max())
    return made


class Fp8Linear(torch.autograd.Function):
    rounds_back = True

    @staticmethod
    def forward(context, x, weight):
        flat, w = x.reshape(-1, x.shape[-1]), rounded_squares(weight.detach().bfloat16())
        context.save_for_backward(flat, w)
        return (rounded_rows(flat) @ w.T).reshape(*x.shape[:-1], -1)

    @staticmethod
    def backward(context, dy):
        x, w = context.saved_tensors
        flat = dy.reshape(-1, dy.shape[-1])
        back = rounded_rows if Fp8Linear.rounds_back else torch.Tensor.double
        dx = back(flat) @ w
        dw = back(flat.T) @ back(x.T).T
        return dx.reshape(*dy.shape[:-1], -1), dw


def in_fp8(model):
    for name, module in model.named_modules():
        if ".layers." not in name or not isinstance(module, torch.nn.Linear) or module.in_features % BLOCK != 0:
            continue

        def forward(x, module=module):
            y = Fp8Linear.apply(x, module.weight)
            return y if module.bias is None else y + module.bias
        module.forward = forward
    return model


def train(folder, data, dtype, change=lambda model: model, count=STEPS):
    model = change(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").to(dtype))
    optimizer = adamw(model.parameters())
    steps, first = [], {}
    for step in range(count):
        ids = torch.tensor(data[step * BATCH:(step + 1) * BATCH])
        logits = model(ids).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, VOCABULARY), ids[:, 1:].reshape(-1))
        model.zero_grad()
        loss.backward()
        if step == 0:
            first = {name: p.grad[:KEPT_ROWS].float().contiguous() for name, p in model.named_parameters()
                     if ".layers." in name and p.dim() == 2}
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        steps.append([loss.item(), norm.item()])
    return steps, first


def main():
    torch.set_num_threads(1)
    folder = pathlib.Path(sys.argv[1]) / "training" / "fp8"
    torch.manual_seed(4)
    model = AutoModelForCausalLM.from_config(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    model.to(torch.bfloat16).save_pretrained(folder / "init")
    expected, stored = {}, {}
    for kind, dtype, change in (("float64", torch.float64, lambda m: m), ("float32", torch.float32, lambda m: m),
                                ("fp8", torch.float64, in_fp8)):
        expected[kind], first = train(folder / "init", rows(), dtype, change)
        if kind != "float32":
            stored.update({f"{kind}.{name}": tensor for name, tensor in first.items()})
    Fp8Linear.rounds_back = False
    _, first = train(folder / "init", rows(), torch.float64, in_fp8, 1)
    stored.update({f"forward.{name}": tensor for name, tensor in first.items()})
    save_file(stored, folder / "first_step.safetensors")
    (folder / "expected.json").write_text(json.dumps(expected, indent=0) + "\n")


if __name__ == "__main__":
    main()
