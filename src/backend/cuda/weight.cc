#include "backend/cuda/weight.h"

#include "backend/cuda/cuda_class.h"

namespace qiao::cuda {
namespace {

size_t file_bytes(const WeightPart& part, int64_t columns) {
  return static_cast<size_t>(part.rows * row_bytes(part.dtype, columns));
}

size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

size_t CudaWeight::bytes_for(const WeightSource& source) {
  size_t sum = 0;
  for (const WeightPart& part : source.parts) sum += aligned(file_bytes(part, source.columns));
  return sum;
}

CudaWeight::CudaWeight(const WeightSource& source, Buffer memory)
    : Weight(source), memory_(std::move(memory)), offsets_{0} {
  for (size_t i = 0; i < segments().size(); ++i) offsets_.push_back(offsets_.back() + aligned(part_bytes(i)));
}

size_t CudaWeight::part_bytes(size_t segment) const {
  return static_cast<size_t>(segments()[segment].rows * row_bytes(segments()[segment].dtype, columns()));
}

std::byte* CudaWeight::part(int64_t expert, size_t segment) const {
  return static_cast<std::byte*>(memory_.data()) + static_cast<size_t>(expert) * offsets_.back() +
         offsets_[segment];
}

std::unique_ptr<Weight> CudaBackend::do_make_weight(const WeightSource& source) {
  auto weight = std::make_unique<CudaWeight>(source, allocate(CudaWeight::bytes_for(source)));
  for (size_t i = 0; i < source.parts.size(); ++i) {
    const size_t segments = weight->segments().size();
    const size_t bytes = weight->part_bytes(i % segments);
    upload(weight->part(static_cast<int64_t>(i / segments), i % segments), source.parts[i].bytes, bytes);
    if (source.done_with) source.done_with(source.parts[i].bytes, static_cast<int64_t>(bytes));
  }
  return weight;
}

void CudaBackend::do_read_weight(const Weight& weight, int64_t expert, size_t segment, std::byte* bytes) {
  const auto& of_chip = static_cast<const CudaWeight&>(weight);
  download(bytes, of_chip.part(expert, segment), of_chip.part_bytes(segment));
}

}  // namespace qiao::cuda
