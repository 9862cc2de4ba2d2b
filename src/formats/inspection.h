// What is in a model's files, for a person and for a program.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "base/json.h"
#include "formats/model_files.h"

namespace qiao {

struct TypeShare {
  uint64_t tensors = 0;
  uint64_t parameters = 0;
  uint64_t bytes = 0;
};

struct ModelSummary {
  std::string format;        // "GGUF v3", "Hugging Face (safetensors)"
  std::string architecture;  // as the files name it; empty where they do not
  std::string name;
  uint64_t file_bytes = 0;
  uint64_t parameters = 0;
  uint64_t weight_bytes = 0;
  std::map<std::string, TypeShare> types;  // by element type
  std::optional<int64_t> context_length;
  std::optional<int64_t> vocabulary_size;
};

// Never throws for odd metadata: what is not there, or not of the right type, is left out.
ModelSummary summarize(const ModelFiles& model);

struct InspectOptions {
  bool summary = true;
  bool tensors = true;
  bool full = false;  // arrays and (as text) strings in whole
};

// Lines with a last newline; no control characters come out of the files.
std::string inspect_text(const ModelFiles& model, const InspectOptions& options);

// Everything: summary, metadata, tensors with file and offset. Arrays of more than 64 elements appear as
// {"count", "first"} unless options.full.
Json inspect_json(const ModelFiles& model, const InspectOptions& options);

}  // namespace qiao
