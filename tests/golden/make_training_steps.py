#!/usr/bin/env python3
"""Single steps of PyTorch in float64 from states that float32 can hold, for tests/golden/training/steps.

  make_training_steps.py FOLDER      writes FOLDER/training/steps, as it belongs into tests/golden

steps/NAME/init is the model before step 1, as its state_dict names it (experts stacked). states.safetensors holds, of each
step that expected.json lists, STEP.gradient.TENSOR (before clipping) and after the step STEP.parameter.TENSOR,
STEP.first_moment.TENSOR and STEP.second_moment.TENSOR. A step begins from what is stored of the one before it (0: the model
and no moments): states are rounded to float32 between steps, all else is float64. expected.json has each step's rows, its
loss and the gradient's norm. torch.optim.AdamW, clip_grad_norm_ to 1.
"""
import json
import pathlib
import random
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Qwen3Config, Qwen3MoeConfig

VOCABULARY, LENGTH, BATCH = 24, 16, 4
STORED = {1: 0, 20: 19}  # step: the state it begins from
ADAMW = dict(lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
SHAPE = dict(vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
             num_key_value_heads=1, head_dim=8, max_position_embeddings=64, initializer_range=0.15, pad_token_id=None,
             bos_token_id=None, eos_token_id=None)
MODELS = {
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=False, attention_bias=True),
    "qwen3": Qwen3Config(**SHAPE, tie_word_embeddings=True),
    "qwen3-moe": Qwen3MoeConfig(**SHAPE, tie_word_embeddings=False, num_experts=4, num_experts_per_tok=2,
                                moe_intermediate_size=8, norm_topk_prob=True),
    "gemma3": Gemma3TextConfig(**SHAPE, tie_word_embeddings=True, sliding_window=6, query_pre_attn_scalar=8,
                               layer_types=["sliding_attention", "full_attention"]),
}


def rows_of(step):
    drawn = random.Random(step)
    made = []
    for _ in range(BATCH):
        first, stride = drawn.randrange(VOCABULARY), drawn.randrange(1, 5)
        made.append([(first + stride * i + i * i % 3) % VOCABULARY for i in range(LENGTH)])
    return made


def take_step(model, optimizer, rows):
    """The loss, the gradient's norm and the gradients as they were before clipping."""
    ids = torch.tensor(rows)
    logits = model(ids).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, VOCABULARY), ids[:, 1:].reshape(-1))
    optimizer.zero_grad()
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item(), norm.item(), gradients


def state_of(model, optimizer):
    """Parameters and moments, rounded in place to what float32 holds."""
    state = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            moments = optimizer.state[parameter]
            for kind, tensor in (("parameter", parameter), ("first_moment", moments["exp_avg"]),
                                 ("second_moment", moments["exp_avg_sq"])):
                tensor.copy_(tensor.float())
                state[f"{kind}.{name}"] = tensor.detach().float().clone()
    return state


def make(folder, config):
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager").float()
    with torch.no_grad():  # norms and biases that say something
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    (folder / "init").mkdir(parents=True, exist_ok=True)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder / "init")
    save_file({name: parameter.detach().clone() for name, parameter in model.named_parameters()},
              folder / "init" / "model.safetensors", metadata={"format": "pt"})
    model = model.double()
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
    stored, steps = {}, []
    for step in range(1, max(STORED) + 1):
        rows = rows_of(step)
        loss, norm, gradients = take_step(model, optimizer, rows)
        state = state_of(model, optimizer)
        if step in STORED:
            steps.append(dict(step=step, begins_from=STORED[step], loss=loss, grad_norm=norm, rows=rows))
            stored.update({f"{step}.gradient.{name}": tensor.float() for name, tensor in gradients.items()})
        if step in STORED or step in STORED.values():
            stored.update({f"{step}.{name}": tensor for name, tensor in state.items()})
    save_file(stored, folder / "states.safetensors")
    (folder / "expected.json").write_text(json.dumps(steps) + "\n")


def main():
    torch.set_num_threads(1)
    folder = pathlib.Path(sys.argv[1]) / "training" / "steps"
    for name, config in MODELS.items():
        make(folder / name, config)


if __name__ == "__main__":
    main()
