// FP8 checkpoints of Hugging Face: tensors of F8_E4M3 whose scales are tensors beside them. Together they are
// tensors of F8_128 (tensor/fp8.h) where 128 columns have one scale, whichever kind of checkpoint it is:
//   X_scale_inv   with one scale for each block (quantization_config.h tells its size, 128 x 128 where it is
//                 not told): DeepSeek and Qwen; or one for all
//   X_scale       with one for all, for each row, block or group of a row's columns: compressed-tensors,
//                 ModelOpt, FBGEMM, and quant_method "fp8" without blocks
// Weights stacked by expert [E, N, K] have E times as many. Scales are floats, or powers of two: F8_E8M0, or
// its bytes as U8, as files of MXFP8 have them (OCP Microscaling Formats v1.0), one for 32 columns of a row.
// Those of activations and of cached keys and values (X.input_scale, k_scale and such) are read over:
// activations are scaled as they come.
#pragma once

#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/thread_pool.h"
#include "formats/gguf.h"
#include "tensor/fp8.h"

namespace qiao {

class Fp8Tensors {
 public:
  // What a tensor is made of, as the files have it.
  struct Source {
    TensorInfo numbers, scales;
    int64_t experts = 1, rows = 0, columns = 0;
    F8Scales grid;  // of one expert; without its values
  };

  enum class As { kBlocks, kFloats };
  // Joins the FP8 tensors of `tensors` with their scales: they become F8_128, or floats where rows are no
  // whole blocks of it and where these are asked for (BF16 of scales that are powers of two, which is exact
  // from 2^-133 on; else F32), and the tensors of scales go. One without scales stays F8_E4M3. `config` is
  // config.json.
  // Throws Error(kInvalidInput) naming the tensor whose scales have another shape, with what was expected,
  // and Error(kUnsupported) for scales of another type and for what check_quantization refuses. `source` is
  // for messages.
  static Fp8Tensors join(std::vector<TensorInfo>& tensors, const Json& config, std::string_view source,
                         As as = As::kBlocks);

  bool empty() const { return sources_.empty(); }
  // nullptr: the tensor is no such one.
  const Source* find(std::string_view name) const;

  // The bytes of a joined tensor from those of its parts. Throws Error(kInvalidInput) for scales that are no
  // numbers or too large, and for numbers that are NaN. On the threads of `pool` where there is one; safe
  // from any thread.
  void make(const Source& source, DType dtype, std::span<const std::byte> numbers,
            std::span<const std::byte> scales, std::span<std::byte> bytes, ThreadPool* pool = nullptr) const;

 private:
  std::string path_;  // for messages
  std::map<std::string, Source, std::less<>> sources_;
};

}  // namespace qiao
