#include "tensor/dtype.h"

#include <strings.h>

#include <array>
#include <string>

#include "base/error.h"

namespace qiao {
namespace {

constexpr std::array<DTypeTraits, kDTypeCount> kTraits = {{
    {"F32", 1, 4, false},     {"F16", 1, 2, false},       {"BF16", 1, 2, false},
    {"F64", 1, 8, false},     {"I8", 1, 1, false},        {"I16", 1, 2, false},
    {"I32", 1, 4, false},     {"I64", 1, 8, false},       {"U8", 1, 1, false},
    {"Q4_0", 32, 18, true},   {"Q4_1", 32, 20, true},     {"Q5_0", 32, 22, true},
    {"Q5_1", 32, 24, true},   {"Q8_0", 32, 34, true},     {"Q2_K", 256, 84, true},
    {"Q3_K", 256, 110, true}, {"Q4_K", 256, 144, true},   {"Q5_K", 256, 176, true},
    {"Q6_K", 256, 210, true}, {"IQ4_NL", 32, 18, true},   {"IQ4_XS", 256, 136, true},
    {"MXFP4", 32, 17, true},  {"F8_128", 128, 132, true}, {"F8_E4M3", 1, 1, false},
}};

}  // namespace

const DTypeTraits& traits(DType dtype) { return kTraits[static_cast<size_t>(dtype)]; }

std::optional<DType> dtype_named(std::string_view name) {
  for (size_t i = 0; i < kTraits.size(); ++i) {
    if (name.size() == kTraits[i].name.size() &&
        strncasecmp(name.data(), kTraits[i].name.data(), name.size()) == 0) {
      return static_cast<DType>(i);
    }
  }
  return std::nullopt;
}

int64_t row_bytes(DType dtype, int64_t elements) {
  const DTypeTraits& t = traits(dtype);
  QIAO_ASSERT(elements >= 0 && elements % t.block_elements == 0);
  return elements / t.block_elements * t.block_bytes;
}

}  // namespace qiao
