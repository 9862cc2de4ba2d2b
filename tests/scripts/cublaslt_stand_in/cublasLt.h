// What bench/h200/cublaslt_peer.cc calls of cuBLASLt, by plain loops: D = op(A) op(B) as the descriptors say,
// with scales where NVIDIA's guide to cuBLAS 13 has them ("128-element 1D and 128x128 2D Block Scaling For
// FP8 Data Types"). STAND_IN_WRONG=1: a scale is another one's. STAND_IN_WITHOUT_FP8=1: no algorithm for
// E4M3.
#pragma once

#include <cmath>
#include <cstdint>
#include <map>
#include <vector>

#include "cuda_runtime_api.h"

enum cublasStatus_t {
  CUBLAS_STATUS_SUCCESS,
  CUBLAS_STATUS_INVALID_VALUE = 7,
  CUBLAS_STATUS_NOT_SUPPORTED = 15
};
enum cublasOperation_t : int32_t { CUBLAS_OP_N, CUBLAS_OP_T };
enum cublasComputeType_t { CUBLAS_COMPUTE_32F = 68 };
enum cublasLtMatmulDescAttributes_t {
  CUBLASLT_MATMUL_DESC_TRANSA = 3,
  CUBLASLT_MATMUL_DESC_TRANSB = 4,
  CUBLASLT_MATMUL_DESC_A_SCALE_POINTER = 17,
  CUBLASLT_MATMUL_DESC_B_SCALE_POINTER = 18,
  CUBLASLT_MATMUL_DESC_A_SCALE_MODE = 31,
  CUBLASLT_MATMUL_DESC_B_SCALE_MODE = 32,
};
enum cublasLtMatmulMatrixScale_t : int32_t {
  CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F = 4,
  CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F = 5,
};
enum cublasLtMatmulPreferenceAttributes_t { CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1 };

struct StandInProduct {
  std::map<int, int32_t> words;
  std::map<int, const float*> scales;
};
struct StandInLayout {
  cudaDataType type;
  int64_t rows, columns, stride;  // between columns

  float at(const void* data, int64_t row, int64_t column) const {
    const int64_t i = column * stride + row;
    if (type == CUDA_R_32F) return static_cast<const float*>(data)[i];
    if (type == CUDA_R_16BF) {
      const uint32_t bits = uint32_t{static_cast<const uint16_t*>(data)[i]} << 16;
      float value;
      std::memcpy(&value, &bits, sizeof value);
      return value;
    }
    const int bits = static_cast<const uint8_t*>(data)[i], exponent = bits >> 3 & 15;
    const float value =
        exponent == 0 ? std::ldexp(float(bits & 7), -9) : std::ldexp(float((bits & 7) | 8), exponent - 10);
    return bits >> 7 != 0 ? -value : value;
  }
};
using cublasLtHandle_t = void*;
using cublasLtMatmulDesc_t = StandInProduct*;
using cublasLtMatrixLayout_t = StandInLayout*;
using cublasLtMatmulPreference_t = size_t*;
struct cublasLtMatmulAlgo_t {};
struct cublasLtMatmulHeuristicResult_t {
  cublasLtMatmulAlgo_t algo;
  cublasStatus_t state;
};

inline cublasStatus_t cublasLtCreate(cublasLtHandle_t*) { return CUBLAS_STATUS_SUCCESS; }
inline void cublasLtDestroy(cublasLtHandle_t) {}
inline cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* product, cublasComputeType_t,
                                               cudaDataType) {
  *product = new StandInProduct;
  return CUBLAS_STATUS_SUCCESS;
}
inline void cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t product) { delete product; }
inline cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t product,
                                                     cublasLtMatmulDescAttributes_t which, const void* value,
                                                     size_t bytes) {
  if (bytes == sizeof(int32_t)) std::memcpy(&product->words[which], value, bytes);
  if (bytes == sizeof(void*)) std::memcpy(&product->scales[which], value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type,
                                                 uint64_t rows, uint64_t columns, int64_t stride) {
  *layout = new StandInLayout{type, static_cast<int64_t>(rows), static_cast<int64_t>(columns), stride};
  return CUBLAS_STATUS_SUCCESS;
}
inline void cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) { delete layout; }
inline cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = new size_t;
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t,
                                                           cublasLtMatmulPreferenceAttributes_t, const void*,
                                                           size_t) {
  return CUBLAS_STATUS_SUCCESS;
}
inline void cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) { delete preference; }
inline cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t,
                                                     cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t,
                                                     cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                                     cublasLtMatmulPreference_t, int,
                                                     cublasLtMatmulHeuristicResult_t* found, int* count) {
  *count = 0;
  if (a->type == CUDA_R_8F_E4M3 && std::getenv("STAND_IN_WITHOUT_FP8") != nullptr)
    return CUBLAS_STATUS_NOT_SUPPORTED;
  for (const cublasStatus_t state :
       {CUBLAS_STATUS_SUCCESS, CUBLAS_STATUS_NOT_SUPPORTED, CUBLAS_STATUS_SUCCESS}) {
    found[(*count)++].state = state;
  }
  return CUBLAS_STATUS_SUCCESS;
}

// Of element (outer, k) of an operand with `outers` of them.
inline float stand_in_scale(const StandInProduct& product, bool of_a, int64_t outer, int64_t outers,
                            int64_t k, int64_t columns) {
  const auto mode =
      product.words.find(of_a ? CUBLASLT_MATMUL_DESC_A_SCALE_MODE : CUBLASLT_MATMUL_DESC_B_SCALE_MODE);
  if (mode == product.words.end()) return 1;
  const float* scales =
      product.scales.at(of_a ? CUBLASLT_MATMUL_DESC_A_SCALE_POINTER : CUBLASLT_MATMUL_DESC_B_SCALE_POINTER);
  const int64_t wrong = std::getenv("STAND_IN_WRONG") != nullptr ? 1 : 0, block = k / 128;
  if (mode->second == CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F)
    return scales[block * outers + (outer + wrong) % outers];
  return scales[outer / 128 * (((columns + 127) / 128 + 3) / 4 * 4) + block];
}

inline cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t product, const void*,
                                     const void* a, cublasLtMatrixLayout_t of_a, const void* b,
                                     cublasLtMatrixLayout_t of_b, const void*, const void*,
                                     cublasLtMatrixLayout_t, void* d, cublasLtMatrixLayout_t of_d,
                                     const cublasLtMatmulAlgo_t*, void*, size_t, cudaStream_t) {
  const bool a_turned = product->words.at(CUBLASLT_MATMUL_DESC_TRANSA) == CUBLAS_OP_T;
  const bool b_turned = product->words.at(CUBLASLT_MATMUL_DESC_TRANSB) == CUBLAS_OP_T;
  const int64_t columns = a_turned ? of_a->rows : of_a->columns;
  if (columns != (b_turned ? of_b->columns : of_b->rows)) return CUBLAS_STATUS_INVALID_VALUE;
  for (int64_t j = 0; j < of_d->columns; ++j) {
    for (int64_t i = 0; i < of_d->rows; ++i) {
      float sum = 0;
      for (int64_t k = 0; k < columns; ++k) {
        const float of_x = a_turned ? of_a->at(a, k, i) : of_a->at(a, i, k);
        const float of_y = b_turned ? of_b->at(b, j, k) : of_b->at(b, k, j);
        sum += of_x * of_y * stand_in_scale(*product, true, i, of_d->rows, k, columns) *
               stand_in_scale(*product, false, j, of_d->columns, k, columns);
      }
      static_cast<float*>(d)[j * of_d->stride + i] = sum;
    }
  }
  return CUBLAS_STATUS_SUCCESS;
}
