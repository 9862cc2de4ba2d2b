// The tokenizer of a Hugging Face directory as metadata of a GGUF file.
#pragma once

#include <cstdint>
#include <string_view>

#include "formats/gguf_write.h"
#include "formats/model_files.h"

namespace qiao {

// tokenizer.ggml.* and tokenizer.chat_template for a model of `vocabulary` tokens: the same ids for every
// text (what a normalizer changes before, as Unicode's composition, GGUF files do not have). Tokens that the
// tokenizer lacks are filled in as unused, those behind the model's are left out. Byte-level BPE becomes
// "gpt2", BPE with byte fallback "llama". Throws Error(kUnsupported) naming the field for any other, and for
// a pre-tokenizer that no name stands for.
GgufWriteEntries gguf_tokenizer_of(const ModelFiles& files, int64_t vocabulary);

}  // namespace qiao
