// Loops over arrays of registers.
#pragma once

#include <type_traits>
#include <utility>

namespace qiao::cpu {

// body(0), …, body(N - 1) with constant indices, so that arrays of registers stay registers.
template <int N, typename Body>
[[gnu::always_inline]] inline void unroll(Body body) {
  [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    (body(std::integral_constant<int, I>{}), ...);
  }
  (std::make_integer_sequence<int, N>{});
}

}  // namespace qiao::cpu
