// The tokenizer of a GGUF file as a Hugging Face directory has it.
#pragma once

#include <cstdint>

#include "base/json.h"
#include "formats/gguf.h"

namespace qiao {

// tokenizer.json: the same ids for every text. Byte-level BPE ("gpt2") and SentencePiece BPE ("llama").
// Throws Error(kUnsupported) naming another model or a pre-tokenizer that the format cannot say,
// Error(kInvalidInput) for two tokens of one spelling.
Json tokenizer_json_of(const GgufMetadata& metadata);

// tokenizer_config.json: special tokens, chat template, the context.
Json tokenizer_config_of(const GgufMetadata& metadata, int64_t context);

// generation_config.json: the tokens that begin a text, fill it and end an answer.
Json generation_config_of(const GgufMetadata& metadata);

}  // namespace qiao
