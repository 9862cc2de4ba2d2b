// JSON numbers within bounds, as automata over their digits.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace qiao::constrain {

// A decimal number, exactly.
struct Decimal {
  bool negative = false;
  std::string integer = "0";  // without leading zeros
  std::string fraction;       // without trailing zeros
  bool zero() const { return integer == "0" && fraction.empty(); }
  bool operator==(const Decimal&) const = default;
  std::string text() const;
  static Decimal of(const Json& number);  // the shortest decimal that reads back as the same double
};
int compare(const Decimal& a, const Decimal& b);

struct NumberSpec {
  bool integer = false;      // 1.0 is one
  bool fractional = false;   // not an integer
  bool digits_only = false;  // without fraction and exponent
  std::optional<Decimal> min, max;
  bool min_excluded = false, max_excluded = false;
  std::vector<Decimal> multiples;  // of each of these; positive
  bool operator==(const NumberSpec&) const = default;

  void at_least(const Decimal& bound, bool excluded);
  void at_most(const Decimal& bound, bool excluded);
  NumberSpec both(const NumberSpec& other) const;
};

// What a format of numbers (OpenAPI's) asks for: of "int32" a whole number of so many bits, of "double",
// which only says how a number is kept, nothing. No value: it is no format of numbers.
std::optional<NumberSpec> number_format(std::string_view format);
std::vector<std::string> number_format_names();

// Every number without bounds is taken in every form of RFC 8259. With bounds other than 0, or with
// multiples, numbers are taken in plain decimal notation, without an exponent: what exponents bring is no
// regular language. An integer may be written 3, 3.0 or 3e2.
class NumberDfa {
 public:
  static constexpr uint32_t kDead = 0, kStart = 1;
  // Throws Error(kTooLarge) naming `where` for multiples that need too many states.
  NumberDfa(const NumberSpec& spec, std::string_view where);

  bool empty() const { return states_.size() <= kStart || !states_[kStart].live; }
  uint32_t next(uint32_t state, char byte) const;
  bool accepts(uint32_t state) const { return states_[state].accepts; }
  static constexpr std::string_view kBytes = "0123456789-+.eE";

 private:
  struct State {
    std::array<uint32_t, 14> next{};
    bool accepts = false, live = false;
  };
  std::vector<State> states_;
};

}  // namespace qiao::constrain
