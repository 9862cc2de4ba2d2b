// What /v1/embeddings reads and answers, whatever the model.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "serve/fields.h"

namespace qiao::serve {

inline constexpr size_t kMaxInputs = 2048;

struct EmbeddingFields {
  const Json* input = nullptr;  // there
  bool base64 = false;
  int64_t dimensions = 0;  // at most the model's
  bool cut = false;        // fewer than the model's were asked for
};

// Reads input, encoding_format and dimensions, skips user.
EmbeddingFields read_embedding_fields(Fields& fields, int64_t model_dimensions);

Json embeddings_json(const std::vector<std::vector<float>>& vectors, const std::string& model_name,
                     int64_t prompt_tokens, bool base64);

}  // namespace qiao::serve
