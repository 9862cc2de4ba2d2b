// What makes one vector of a sequence's hidden states: sentence-transformers' modules (pooling, dense,
// normalize), or a classification head. A thousandth of the encoder's work: done on the host, in float64.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/ops/common.h"
#include "models/encoder_config.h"

namespace qiao {

enum class PoolingKind : uint8_t { kMean, kCls, kMax, kMeanSqrtLen, kLastToken, kWeightedMean };

// y = activation(W x + b), W [rows, columns] row-major.
struct DenseModule {
  int64_t rows = 0, columns = 0;
  std::vector<float> weight, bias;  // bias: empty where there is none
  HeadActivation activation = HeadActivation::kNone;
};

struct PoolingHead {
  std::vector<PoolingKind> kinds = {PoolingKind::kMean};  // their vectors one after the other
  std::vector<DenseModule> dense;                         // in order
  bool normalize = false;                                 // to length 1, at the end
  int64_t max_tokens = 0;                                 // of a text, special tokens included; 0: not said
  int64_t dimensions = 0;                                 // of what comes out
  bool lowercase = false;                                 // texts, before they become tokens (do_lower_case)
  bool scores = false;  // the vector is the scores of a classification head, one a label

  // hidden: [tokens, C] of one sequence of one token or more.
  std::vector<float> apply(std::span<const float> hidden, int64_t width) const;
};

// From modules.json and what it names (1_Pooling/config.json, 2_Dense, 2_Normalize),
// sentence_bert_config.json (tokenizer_config.json's model_max_length where it names no limit), GGUF's
// pooling_type, or the head of a classification model. A plain BERT is pooled by its mean and normalized, as
// sentence-transformers does with a model that says nothing. Throws Error(kUnsupported) for a module that
// Qiao does not know, kInvalidInput for sizes that do not fit.
PoolingHead read_pooling(const ModelFiles& files, const EncoderConfig& config);

// vector cut to its first `dimensions` and scaled to length 1 (a vector of zeros stays).
void shorten(std::vector<float>& vector, int64_t dimensions);

}  // namespace qiao
