// Plan: values are converted row by row. Sixteen tokens that fill a group of keys are transposed in registers
// and stored whole; a token alone (decode) has its key's elements stored one by one. The limit is memory.
#pragma once

#include "backend/cpu/element.h"
#include "backend/cpu/kv_write_f8_inl.h"
#include "backend/cpu/kv_write_kernels.h"
#include "backend/cpu/kv_write_q8_inl.h"

namespace qiao::cpu {

template <class V>
struct KvWriteKernel {
  using F = typename V::F;

  template <typename T>
  static void tokens(const KvWrite& op, const KvTarget& to, int64_t begin, int64_t end) {
    const int32_t* slots = static_cast<const int32_t*>(op.slots.data);
    for (int64_t t = begin; t < end;) {
      const bool group = to.grouped && t + 16 <= end && fills_group(slots + t);
      const int64_t count = group ? 16 : 1;
      for (int64_t g = 0; g < to.kv_heads; ++g) {
        const float* key = static_cast<const float*>(op.k.data) + t * op.k.stride[0] + g * op.k.stride[1];
        const int64_t page = slots[t] / to.page_tokens, offset = slots[t] % to.page_tokens;
        const int64_t head = (page * to.kv_heads + g) * to.page_tokens;
        T* keys = static_cast<T*>(to.keys);
        if (group) {
          write_group(key, op.k.stride[0], to.dim, keys + (head + offset) * to.dim);
        } else if (to.grouped) {
          write_one(key, to.dim, 16, keys + (head + offset / 16 * 16) * to.dim + offset % 16);
        } else {
          write_one(key, to.dim, 1, keys + (head + offset) * to.dim);
        }
        for (int64_t i = 0; i < count; ++i) {
          const float* value =
              static_cast<const float*>(op.v.data) + (t + i) * op.v.stride[0] + g * op.v.stride[1];
          write_value(value, to.dim, static_cast<T*>(to.values) + (head + offset + i) * to.pitch);
        }
      }
      t += count;
    }
  }

  // Rows with scales, of whose bytes Writer has the rule.
  template <class Writer>
  static void scaled_tokens(const KvWrite& op, const KvTarget& to, int64_t begin, int64_t end) {
    const int32_t* slots = static_cast<const int32_t*>(op.slots.data);
    const int64_t row = Writer::row_bytes(to.dim);
    for (int64_t t = begin; t < end;) {
      const bool group = to.grouped && t + 16 <= end && fills_group(slots + t);
      const int64_t count = group ? 16 : 1;
      for (int64_t g = 0; g < to.kv_heads; ++g) {
        const float* key = static_cast<const float*>(op.k.data) + t * op.k.stride[0] + g * op.k.stride[1];
        const int64_t page = slots[t] / to.page_tokens, offset = slots[t] % to.page_tokens;
        const int64_t head = (page * to.kv_heads + g) * to.page_tokens;
        char* keys = static_cast<char*>(to.keys);
        if (group) {
          Writer::group(key, op.k.stride[0], to.dim, keys + (head + offset) * row);
        } else if (to.grouped) {
          Writer::lane(key, to.dim, offset % 16, keys + (head + offset / 16 * 16) * row);
        } else {
          Writer::row(key, to.dim, keys + (head + offset) * row);
        }
        for (int64_t i = 0; i < count; ++i) {
          const float* value =
              static_cast<const float*>(op.v.data) + (t + i) * op.v.stride[0] + g * op.v.stride[1];
          Writer::row(value, to.dim, static_cast<char*>(to.values) + (head + offset + i) * row);
        }
      }
      t += count;
    }
  }

  static constexpr auto q8_tokens = &scaled_tokens<Q8Writer<V>>;
  static constexpr auto f8_tokens = &scaled_tokens<F8Writer<V>>;

 private:
  // Sixteen slots in a row, from a group's first on.
  static bool fills_group(const int32_t* slots) {
    if (slots[0] % 16 != 0) return false;
    for (int i = 1; i < 16; ++i) {
      if (slots[i] != slots[0] + i) return false;
    }
    return true;
  }

  static F load(const float* p, int64_t rest) { return rest >= 16 ? V::load(p) : V::load_part(p, rest); }

  template <typename T>
  static void write_group(const float* key, int64_t stride, int64_t dim, T* out) {
    for (int64_t d = 0; d < dim; d += 16) {
      F rows[16];
      for (int i = 0; i < 16; ++i) rows[i] = load(key + i * stride + d, dim - d);
      V::transpose(rows);
      const int64_t count = dim - d < 16 ? dim - d : 16;
      for (int64_t i = 0; i < count; ++i) V::store(out + (d + i) * 16, rows[i]);
    }
  }

  template <typename T>
  static void write_one(const float* key, int64_t dim, int64_t step, T* out) {
    for (int64_t d = 0; d < dim; d += 16) {
      T converted[16];
      V::store(converted, load(key + d, dim - d));
      const int64_t count = dim - d < 16 ? dim - d : 16;
      for (int64_t i = 0; i < count; ++i) out[(d + i) * step] = converted[i];
    }
  }

  template <typename T>
  static void write_value(const float* value, int64_t dim, T* out) {  // the padding becomes 0
    for (int64_t d = 0; d < dim; d += 16) V::store(out + d, load(value + d, dim - d));
  }
};

}  // namespace qiao::cpu
