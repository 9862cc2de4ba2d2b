// The one encoder: BERT kinds, run from their EncoderConfig. Bidirectional, without a cache.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "backend/backend.h"
#include "models/decoder.h"
#include "models/encoder_config.h"

namespace qiao {

// Sequences packed one after the other, in host memory. Nothing is padded.
struct EncoderBatch {
  std::span<const int32_t> tokens;  // [T], each in [0, V): checked
  std::span<const int32_t> types;   // [T], or empty: all 0
  std::span<const int32_t> starts;  // [S + 1]: sequence s owns tokens [starts[s], starts[s + 1])
};

class Encoder {
 public:
  // As Decoder::load.
  static std::unique_ptr<Encoder> load(const ModelFiles& files, Backend& backend,
                                       const DecoderOptions& options = {});
  ~Encoder();

  const EncoderConfig& config() const;
  Backend& backend() const;
  uint64_t weight_bytes() const;

  // Memory for a batch of at most T tokens and S sequences; made once, reused.
  struct Limits {
    int64_t tokens = 512, sequences = 1;
  };
  class Workspace;
  std::unique_ptr<Workspace> make_workspace(const Limits& limits) const;

  // The last layer's hidden states, F32 [T, C] in the chip's memory, valid until the workspace's next use. A
  // sequence's rows do not depend on what is packed beside it.
  Tensor forward(const EncoderBatch& batch, Workspace& workspace) const;

 private:
  struct Parts;
  explicit Encoder(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

class Encoder::Workspace {
 public:
  virtual ~Workspace() = default;
  virtual size_t bytes() const = 0;
};

}  // namespace qiao
