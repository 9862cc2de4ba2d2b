#include "backend/cpu/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <array>
#include <cstdlib>
#include <string>

#include "base/error.h"

namespace qiao::cpu {
namespace {

constexpr std::array<std::string_view, 5> kNames = {"generic", "avx2", "avx512", "avx512_vnni",
                                                    "avx512_bf16"};

Isa detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  // F16C (leaf 1, ECX bit 29) and AVX512_BF16 (leaf 7.1, EAX bit 5) by hand: clang 14 does not know their
  // names here.
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool has_f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c >> 29 & 1) != 0;
  const bool has_bf16 = __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 5 & 1) != 0;
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !has_f16c ||
      !__builtin_cpu_supports("bmi2")) {
    return Isa::kGeneric;
  }
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq")) {
    return Isa::kAvx2;
  }
  if (!__builtin_cpu_supports("avx512vnni")) return Isa::kAvx512;
  return has_bf16 ? Isa::kAvx512Bf16 : Isa::kAvx512Vnni;
#else
  return Isa::kGeneric;
#endif
}

Isa choose() {
  const Isa widest = widest_isa();
  const char* wanted = std::getenv("QIAO_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return widest;
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (kNames[i] != wanted) continue;
    if (i > static_cast<size_t>(widest)) {
      throw_error(ErrorKind::kUnavailable, "QIAO_CPU_ISA={}: this machine has {} at most", wanted,
                  name(widest));
    }
    return static_cast<Isa>(i);
  }
  throw_error(ErrorKind::kInvalidInput,
              "QIAO_CPU_ISA={}: expected generic, avx2, avx512, avx512_vnni or avx512_bf16", wanted);
}

}  // namespace

Isa widest_isa() {
  static const Isa isa = detect();
  return isa;
}

Isa active_isa() {
  static const Isa isa = choose();
  return isa;
}

std::string_view name(Isa isa) { return kNames[static_cast<size_t>(isa)]; }

}  // namespace qiao::cpu
