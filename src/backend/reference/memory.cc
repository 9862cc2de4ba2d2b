// Part of the law (reference_class.h).
#include "backend/reference/memory.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "tensor/fp8.h"
#include "tensor/half.h"

namespace qiao::reference {

ReferenceWeight::ReferenceWeight(const WeightSource& source) : Weight(source) {
  for (const WeightPart& part : source.parts) {
    const auto bytes = static_cast<size_t>(part.rows * row_bytes(part.dtype, source.columns));
    parts_.emplace_back(part.bytes, part.bytes + bytes);
  }
}

size_t ReferenceWeight::bytes() const {
  size_t sum = 0;
  for (const auto& part : parts_) sum += part.size();
  return sum;
}

const std::vector<std::byte>& ReferenceWeight::part(int64_t expert, size_t segment) const {
  return parts_[static_cast<size_t>(expert) * segments().size() + segment];
}

void ReferenceWeight::write(int64_t expert, const float* values) {
  for (size_t i = 0; i < segments().size(); ++i) {
    const Segment& segment = segments()[i];
    std::byte* to = parts_[static_cast<size_t>(expert) * segments().size() + i].data();
    if (segment.dtype == DType::kF8_128) {
      quantize_f8_of_bf16(
          {values + segment.first_row * columns(), static_cast<size_t>(segment.rows * columns())},
          segment.rows, columns(), to);
      continue;
    }
    for (int64_t e = 0; e < segment.rows * columns(); ++e) {
      const float value = values[segment.first_row * columns() + e];
      const uint16_t half = segment.dtype == DType::kF16 ? float_to_f16(value) : float_to_bf16(value);
      if (segment.dtype == DType::kF32) {
        std::memcpy(to + e * 4, &value, sizeof value);
      } else {
        std::memcpy(to + e * 2, &half, sizeof half);
      }
    }
  }
}

void ReferenceWeight::row_terms(int64_t expert, int64_t row, Term* out) const {
  for (size_t i = 0; i < segments().size(); ++i) {
    const Segment& segment = segments()[i];
    if (row < segment.first_row || row >= segment.first_row + segment.rows) continue;
    const int64_t offset = (row - segment.first_row) * row_bytes(segment.dtype, columns());
    dequantize_terms(segment.dtype, part(expert, i).data() + offset, columns(), out);
    return;
  }
  QIAO_ASSERT(false && "row of a weight");
}

ReferencePages::ReferencePages(const KvPagesSpec& spec)
    : KvPages(spec), row_bytes_(kv_row_bytes(spec.dtype, spec.head_dim)) {
  // Contents are undefined until written: NaN, in every format, shows who reads them.
  rows_.assign(page_bytes() * static_cast<size_t>(spec.pages), std::byte{0xff});
}

size_t ReferencePages::bytes() const { return rows_.size(); }

}  // namespace qiao::reference
