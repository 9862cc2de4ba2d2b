// Helpers of the ops' check(). Good arguments cost some comparisons and no allocation: check() runs at each
// call of each op. A refusal is Error(kInvalidInput) "op: argument is F32[4, 10], expected F32[4, 12]".
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <initializer_list>
#include <string_view>

#include "backend/ops/common.h"

namespace qiao::check {

// Present, of this dtype and shape, its memory there, aligned to its elements, and no two of its elements at
// one address.
void tensor(std::string_view op, std::string_view name, const Tensor& tensor, DType dtype,
            std::initializer_list<int64_t> shape);
// As tensor(), with the last dimension contiguous.
void rows(std::string_view op, std::string_view name, const Tensor& tensor, DType dtype,
          std::initializer_list<int64_t> shape);
// As tensor(), without gaps.
void dense(std::string_view op, std::string_view name, const Tensor& tensor, DType dtype,
           std::initializer_list<int64_t> shape);

// Present and of this rank, so that its shape may be used in what is expected of others.
void rank(std::string_view op, std::string_view name, const Tensor& tensor, int rank);

// No byte of `a` is a byte of `b`. Absent tensors overlap nothing. Rows that interleave in one buffer (q and
// k inside a fused projection) are told apart where both have the same row stride.
void distinct(std::string_view op, std::string_view a_name, const Tensor& a, std::string_view b_name,
              const Tensor& b);
// The very same elements at the same addresses, or distinct().
void same_or_distinct(std::string_view op, std::string_view a_name, const Tensor& a, std::string_view b_name,
                      const Tensor& b);

// There, and with one expert.
void dense_weight(std::string_view op, std::string_view name, const Weight* weight);
// The compute kind fits every segment's dtype: kQ8 block formats but F8_128, kF8 that one, kBF16 BF16.
void compute(std::string_view op, const Weight& weight, Compute compute);
// The same of a way back, which is never in kQ8, and in kF8 where scales are square alone.
void gradient_compute(std::string_view op, const Weight& weight, Compute compute);
// What rope turns q [T, H, D] by: positions I32 [T], frequencies F32 [1 to D / 2], a finite scale.
void rotation(std::string_view op, const Tensor& q, const Tensor& positions,
              const Tensor& inverse_frequencies, float scale);
// U8, contiguous and 64-byte aligned where present.
void workspace(std::string_view op, const Tensor& workspace);

// Throws "op: message".
[[noreturn]] void refuse(std::string_view op, std::string_view message);

// Bytes of one expert as the file had them, for bytes().
double weight_bytes(const Weight& weight);

}  // namespace qiao::check
