// Lays a LoRA adapter's matrices out beside those of the decoder that it changes.
#pragma once

#include <cstdint>
#include <functional>

#include "models/families.h"
#include "models/lora_files.h"
#include "models/weights.h"

namespace qiao {

// The model that an adapter is for, and how its own files are written.
struct LoraBase {
  const DecoderConfig& config;  // of all of it, where it is over several ranks
  const Family& family;
  bool gguf;
};

// Where a pair went: A is rows [first_rank, first_rank + r) of `a`; `b` holds scale * B, its rows in the
// order of the base's files. Over several ranks these columns of A and rows of B. For training.
struct LaidOutLora {
  const LoraPair* pair;
  Weight* a;
  int64_t first_rank;
  Weight* b;
  float scale;
  std::vector<Range> rows;
  Range columns;
};
using LoraLaidOut = std::function<void(const LaidOutLora& pair)>;

// Gives every layer that the adapter changes its part, as adapter number `index`, and returns the bytes it
// takes. Of a layer that has some rows here it is those rows of B, of one that has some columns those of A:
// what ranks sum up is then the whole; over ranks that train together they join `weights.summed`. Either
// format goes with either format of the base. Every name, dtype and shape is checked before the first matrix
// is laid out: Error(kInvalidInput or kUnsupported) naming file and tensor; Error(kTooLarge), with both
// sizes, where memory will not do.
uint64_t add_lora(const LoraFiles& files, const LoraBase& base, Backend& backend, int32_t index,
                  DecoderWeights& weights, const LoraLaidOut& laid_out = {});

}  // namespace qiao
