// Key/value pages in the device's memory. A page lies in one piece, [G][2][page_tokens] rows: of each head
// its keys, then its values. A row is whole vectors of 16 bytes, which a warp loads and cp.async copies: D
// elements, with zeros up to a multiple of 8; Q8_0: D numbers of 8 bits, then their D / 32 scales (F16) in 16
// bytes more. F8_E4M3: D numbers, and behind a head's rows its [2][page_tokens] scales (F32).
#pragma once

#include <cstdint>

#include "backend/backend.h"

namespace qiao::cuda {

inline constexpr int64_t kMostHeadDim = 256;  // what the kernels of attention are made for

// Throws Error(kUnsupported) where heads are wider.
void refuse_wide_heads(const char* op, int64_t dim);

// What kernels read and write; memory is null until there is any.
struct KvLayout {
  explicit KvLayout(const KvPagesSpec& spec, void* memory = nullptr);
  unsigned char* memory;
  int64_t row_bytes, head_bytes, page_bytes;
  int page_tokens, kv_heads, dim;

  constexpr int64_t values_offset() const { return page_tokens * row_bytes; }  // from a key to its value
  constexpr int64_t scales_offset() const { return 2 * values_offset(); }      // from a head's first key
};

class Stream;
// By kv_write.cu: keys and values of packed rows, F32 [T, G, D], in BF16 as a page of T tokens has them;
// named as a launch of op `name`.
void round_kv_rows(const char* name, const Stream& stream, const Tensor& k, const Tensor& v,
                   const KvLayout& rows);

class CudaKvPages final : public KvPages {
 public:
  CudaKvPages(const KvPagesSpec& spec, Buffer memory) : KvPages(spec), memory_(std::move(memory)) {}
  size_t bytes() const override { return memory_.bytes(); }
  KvLayout layout() const { return KvLayout(spec(), memory_.data()); }

  // That a kernel was given which writes so many rows, `holds` as the stream counts them.
  void wrote(int64_t rows, int64_t holds) { rows_ = holds == holds_ ? rows_ + rows : rows, holds_ = holds; }
  // Whether all but the `rows` that were written last are there before a kernel begins that is given now.
  bool others_are_there(int64_t rows, int64_t holds) const { return holds != holds_ || rows_ == rows; }

 private:
  Buffer memory_;
  int64_t rows_ = 0, holds_ = -1;  // written since that hold
};

}  // namespace qiao::cuda
