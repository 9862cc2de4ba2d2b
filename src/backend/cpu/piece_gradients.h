// The way back through a product with some rows of a weight.
#pragma once

#include "backend/cpu/add_products_kernels.h"
#include "backend/cpu/matmul.h"

namespace qiao::cpu {

struct PieceGradients {
  Tensor dz;                          // F32 [T, P], rows contiguous
  const CpuWeight* weight = nullptr;  // [V, C]
  int64_t first = 0;                  // the piece is rows [first, first + P) of it
  Tensor x;                           // F32 [T, C], rows contiguous; read for dw
  Tensor dx;                          // F32 [T, C], rows contiguous, or absent: dx += dz W
  Tensor dw;                          // F32 [V, C], dense, or absent: dw[first + p] += sum_t dz[t, p] x[t]
  std::byte* workspace = nullptr;     // piece_gradients_workspace_bytes(C)
};

int64_t piece_gradients_workspace_bytes(int64_t columns);

// Sums are F32, in ascending order of the piece's rows and of t.
void add_piece_gradients(const PieceGradients& piece, const LinearKernels& linear,
                         const AddProductsKernels& products, ThreadPool& pool);

}  // namespace qiao::cpu
