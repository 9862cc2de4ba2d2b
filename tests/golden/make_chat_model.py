#!/usr/bin/env python3
"""Makes tests/golden/chat: a tiny model with everything that talking needs.

A Llama of random weights (Transformers, float32, fixed seed), a byte-level BPE tokenizer trained on a few lines, a
ChatML template and a generation_config. What it says means nothing; that it says the same alone, in company, in chunks
and after a restart is what tests ask of it.

  make_chat_model.py FOLDER      writes FOLDER/chat
"""
import json
import pathlib
import sys

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXT = ["The sky is blue because air scatters blue light more than red light.",
        "A bridge carries people over a river; this one carries words.",
        "def add(a, b):\n    return a + b\n", "桥 means bridge. 你好，世界！", "Numbers: 0 1 2 3 4 5 6 7 8 9 10 42 100 1000."]
TEMPLATE = """{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}"""
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent) / "chat"
    folder.mkdir(parents=True, exist_ok=True)

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))

    torch.manual_seed(20261123)
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=48, intermediate_size=80, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=512, rms_norm_eps=1e-5,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=2, pad_token_id=0)
    model = transformers.LlamaForCausalLM(config).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Large enough that attention and the layers matter, or every continuation is one token repeated.
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3 if "norm" in name else 0.25)
    model.generation_config = transformers.GenerationConfig(bos_token_id=0, eos_token_id=[2, 0])
    model.save_pretrained(folder, safe_serialization=True)
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|endoftext|>", "eos_token": "<|im_end|>",
        "add_bos_token": False, "chat_template": TEMPLATE}, indent=1) + "\n")


if __name__ == "__main__":
    main()
