#include "backend/ops/dynamic_codes.h"

#include <algorithm>

#include "base/error.h"

namespace qiao {
namespace {

DynamicCodes make_codes(bool has_signs) {
  constexpr double kDecades[] = {1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0};
  DynamicCodes codes;
  size_t count = 0;
  const auto add = [&](double value) { codes.value[count++] = static_cast<float>(value); };
  add(0.0);
  add(1.0);
  for (int i = 0; i < 7; ++i) {
    const int pieces = has_signs ? 1 << i : 2 << i;
    for (int piece = 0; piece < pieces; ++piece) {
      const double middle = kDecades[i] * (0.1 + 0.9 * (piece + 0.5) / pieces);
      add(middle);
      if (has_signs) add(-middle);
    }
  }
  QIAO_ASSERT(count == codes.value.size());
  std::ranges::sort(codes.value);
  for (size_t c = 0; c < codes.boundary.size(); ++c)
    codes.boundary[c] = (codes.value[c] + codes.value[c + 1]) / 2;
  return codes;
}

}  // namespace

uint8_t DynamicCodes::code_of(float x) const {
  return static_cast<uint8_t>(std::ranges::lower_bound(boundary, x) - boundary.begin());
}

const DynamicCodes& signed_codes() {
  static const DynamicCodes codes = make_codes(true);
  return codes;
}
const DynamicCodes& unsigned_codes() {
  static const DynamicCodes codes = make_codes(false);
  return codes;
}

}  // namespace qiao
