// dx += dz W and dw += dz^T x. Plan: W is dequantized some rows at a time; tiles of add_products_inl.h, whose
// terms (rows of W, or of x) are few enough for a tile's columns of them to stay in the L1 cache.
#include "backend/cpu/piece_gradients.h"

#include <algorithm>
#include <array>
#include <numeric>

namespace qiao::cpu {
namespace {

constexpr int64_t kTerms = 128;
constexpr int64_t kOutRows = 48;  // of an item of work: a multiple of every tile's rows

}  // namespace

int64_t piece_gradients_workspace_bytes(int64_t columns) {
  return (kTerms * columns * static_cast<int64_t>(sizeof(float)) + 63) / 64 * 64;
}

void add_piece_gradients(const PieceGradients& piece, const LinearKernels& linear,
                         const AddProductsKernels& products, ThreadPool& pool) {
  const int64_t tokens = piece.dz.shape[0], rows = piece.dz.shape[1], columns = piece.weight->columns();
  const int64_t stride = piece.dz.stride[0];
  const float* dz = piece.dz.as<float>();
  auto* dequantized = reinterpret_cast<float*>(piece.workspace);
  for (int64_t p = 0; piece.dx.present() && p < rows; p += kTerms) {
    const int64_t terms = std::min(kTerms, rows - p);
    std::array<int32_t, static_cast<size_t>(kTerms)> ids;
    std::iota(ids.begin(), ids.end(), static_cast<int32_t>(piece.first + p));
    Gather gather;
    gather.table = piece.weight;
    gather.ids = Tensor(ids.data(), DType::kI32, {terms});
    gather.out = Tensor(dequantized, DType::kF32, {terms, columns});
    run_gather(gather, linear, pool);
    pool.parallel_for((tokens + kOutRows - 1) / kOutRows, 1, [&](int64_t begin, int64_t end, int) {
      const int64_t t = begin * kOutRows, count = std::min(end * kOutRows, tokens) - t;
      products.add({dz + t * stride + p, stride, 1, dequantized, columns, terms,
                    piece.dx.as<float>() + t * piece.dx.stride[0], piece.dx.stride[0], count, columns});
    });
  }
  if (!piece.dw.present()) return;
  pool.parallel_for((rows + kOutRows - 1) / kOutRows, 1, [&](int64_t begin, int64_t end, int) {
    const int64_t p = begin * kOutRows, count = std::min(end * kOutRows, rows) - p;
    for (int64_t t = 0; t < tokens; t += kTerms) {
      products.add({dz + t * stride + p, 1, stride, piece.x.as<float>() + t * piece.x.stride[0],
                    piece.x.stride[0], std::min(kTerms, tokens - t),
                    piece.dw.as<float>() + (piece.first + p) * columns, columns, count, columns});
    }
  });
}

}  // namespace qiao::cpu
