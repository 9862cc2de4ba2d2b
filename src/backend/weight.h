// What a chip keeps for a model: weights laid out once, and key/value pages. Both opaque: only their chip
// reads inside.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "tensor/dtype.h"

namespace qiao {

// One run of rows as they lie in a file, row-major, K elements a row in `dtype`'s blocks. Host memory, read
// during make_weight only; any alignment.
struct WeightPart {
  DType dtype = DType::kF32;  // F32, F16, BF16 or a block format
  int64_t rows = 0;
  const std::byte* bytes = nullptr;  // rows * row_bytes(dtype, columns)
};

// Parts stacked by rows in the given order: W[E, N, K] with N = sum of the rows of an expert's parts. A fused
// QKV is three parts; parts may differ in dtype. With E > 1 the parts of expert 0 come first, then those of
// expert 1, …, each expert with the same rows and dtypes.
struct WeightSource {
  int64_t experts = 1;
  int64_t columns = 0;  // K; a multiple of each part's block
  std::vector<WeightPart> parts;
  // Of F8_128: scales are the same for 128 rows of a part, from its first on (the last may be fewer), as
  // quantize_f8 makes them. The way back may then be in E4M3 (LinearBackward), and floats be written
  // (Backend::write_weight).
  bool square_scales = false;
  // Where set, called now and then by make_weight's thread with a run of source bytes that will not be read
  // again: the file pages of a large tensor can go while the rest of it is laid out.
  std::function<void(const std::byte* bytes, int64_t count)> done_with = {};
};

// A weight as its chip lays it out: a permutation of the source's blocks, never a second quantization.
// Changed by Backend::write_weight alone; read by any number of ops. gather, linear and grouped_linear read
// the same handle (a tied embedding is kept once).
class Weight {
 public:
  struct Segment {  // of one expert
    DType dtype;
    int64_t first_row;
    int64_t rows;
  };
  virtual ~Weight() = default;
  int64_t experts() const { return experts_; }
  int64_t rows() const { return rows_; }        // N
  int64_t columns() const { return columns_; }  // K
  const std::vector<Segment>& segments() const { return segments_; }
  bool square_scales() const { return square_scales_; }  // WeightSource's
  virtual size_t bytes() const = 0;                      // of the chip's memory

 protected:
  explicit Weight(const WeightSource& source);

 private:
  int64_t experts_, rows_ = 0, columns_;
  std::vector<Segment> segments_;
  bool square_scales_;
};

// The key/value memory of one attention layer: P pages of page_tokens tokens, each with keys [G, D] and
// values [G, D]. A slot is page * page_tokens + offset. Contents are undefined until written.
struct KvPagesSpec {
  int64_t pages = 0;
  int64_t page_tokens = 0;
  int64_t kv_heads = 0;  // G
  int64_t head_dim = 0;  // D
  // F32, F16, BF16; Q8_0 or F8_E4M3 where D is a multiple of 32 or 16: see KvWrite.
  DType dtype = DType::kF16;
};

// Of a row of D in pages of the dtype: its bytes as page_bytes() counts them, and what D is a multiple of.
int64_t kv_row_bytes(DType dtype, int64_t head_dim);
int64_t kv_row_step(DType dtype);

class KvPages {
 public:
  virtual ~KvPages() = default;
  const KvPagesSpec& spec() const { return spec_; }
  virtual size_t bytes() const = 0;

  // Of a page as any chip reads it: for each token and head its key, then its value, rows of D in the dtype
  // (Q8_0 as GGUF has it; F8_E4M3: the scale, F32, then the numbers).
  size_t page_bytes() const;

 protected:
  explicit KvPages(const KvPagesSpec& spec);  // asserts that the spec is positive and slots fit 31 bits

 private:
  KvPagesSpec spec_;
};

}  // namespace qiao
