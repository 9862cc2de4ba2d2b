#include "constrain/json_number.h"

#include <algorithm>
#include <numeric>
#include <unordered_map>

#include "base/error.h"

namespace qiao::constrain {
namespace {

struct NumberFormat {
  std::string_view name;
  int bits;  // 0: any number
  bool is_signed;
};
constexpr NumberFormat kNumberFormats[] = {
    {"int8", 8, true},   {"int16", 16, true},   {"int32", 32, true},   {"int64", 64, true},
    {"uint8", 8, false}, {"uint16", 16, false}, {"uint32", 32, false}, {"uint64", 64, false},
    {"float", 0, true},  {"double", 0, true}};

constexpr size_t kMaxNumberStates = 100'000;
constexpr uint64_t kMaxMultiple = 1'000'000;

// Where in a number's text.
enum Phase : uint8_t { kBegin, kMinus, kZero, kInteger, kPoint, kFraction, kE, kSign, kExponent };

// How the digits so far compare with a bound's.
enum Order : uint8_t { kEqual, kLess, kGreater };

struct Digits {
  uint8_t phase = kBegin;
  bool negative = false, nonzero = false, fraction_nonzero = false;
  uint8_t to_min = kEqual, to_max = kEqual;
  uint16_t integers = 0, fractions = 0;  // digits, up to what the bounds look at; in the exponent: its digits
  uint32_t remainder = 0;

  uint64_t packed() const {
    return uint64_t{phase} | uint64_t{negative} << 4 | uint64_t{nonzero} << 5 |
           uint64_t{fraction_nonzero} << 6 | uint64_t{to_min} << 7 | uint64_t{to_max} << 9 |
           uint64_t{integers} << 11 | uint64_t{fractions} << 22 | uint64_t{remainder} << 33;
  }
};

Order order_of(char digit, char bound) { return digit < bound ? kLess : digit > bound ? kGreater : kEqual; }

class NumberBuilder {
 public:
  NumberBuilder(const NumberSpec& spec, std::string_view where) : spec_(spec) {
    find_multiple(where);
    const auto signs_only = [](const std::optional<Decimal>& bound) { return !bound || bound->zero(); };
    bounded_ = spec.min || spec.max;
    exponents_ =
        signs_only(spec.min) && signs_only(spec.max) && multiple_ == 1 && scale_ == 0 && !spec.fractional;
    for (const auto& bound : {spec.min, spec.max}) {
      if (!bound) continue;
      max_integers_ = std::max(max_integers_, bound->integer.size() + 1);
      max_fractions_ = std::max(max_fractions_, bound->fraction.size());
    }
    max_fractions_ = std::max(max_fractions_, scale_);
  }

  std::optional<Digits> next(Digits d, char byte) const {
    const bool digit = byte >= '0' && byte <= '9';
    switch (d.phase) {
      case kBegin:
        if (byte == '-') {
          d.negative = true;
          d.phase = kMinus;
          return d;
        }
        [[fallthrough]];
      case kMinus:
        if (!digit) return std::nullopt;
        d.phase = byte == '0' ? kZero : kInteger;
        return integer_digit(d, byte);
      case kInteger:
        if (digit) return integer_digit(d, byte);
        [[fallthrough]];
      case kZero:
        if (spec_.digits_only) return std::nullopt;
        if (byte == '.') {
          if (d.integers == 0 && bounded_) return std::nullopt;
          d.to_min = after_integer(d, spec_.min, d.to_min);
          d.to_max = after_integer(d, spec_.max, d.to_max);
          d.integers = 0;
          d.phase = kPoint;
          return d;
        }
        return exponent(d, byte);
      case kPoint:
      case kFraction:
        if (digit) return fraction_digit(d, byte);
        return d.phase == kFraction ? exponent(d, byte) : std::nullopt;
      case kE:
        if (byte == '+' || (byte == '-' && !spec_.integer)) {
          d.phase = kSign;
          return d;
        }
        [[fallthrough]];
      case kSign:
      case kExponent:
        if (!digit || (limits_exponent() && d.fractions == 2)) return std::nullopt;
        if (limits_exponent()) ++d.fractions;
        d.phase = kExponent;
        return d;
    }
    return std::nullopt;
  }

  bool accepts(const Digits& d) const {
    const bool whole =
        d.phase == kZero || d.phase == kInteger || d.phase == kFraction || d.phase == kExponent;
    if (!whole || (spec_.fractional && !d.fraction_nonzero)) return false;
    if (multiple_ > 1) {
      uint64_t remainder = d.remainder;
      for (size_t i = d.fractions; i < scale_; ++i) remainder = remainder * 10 % multiple_;
      if (remainder != 0) return false;
    }
    if (spec_.min) {
      const int order = against(d, *spec_.min, d.to_min);
      if (order < 0 || (order == 0 && spec_.min_excluded)) return false;
    }
    if (spec_.max) {
      const int order = against(d, *spec_.max, d.to_max);
      if (order > 0 || (order == 0 && spec_.max_excluded)) return false;
    }
    return true;
  }

 private:
  // All multiples as one: multiple_ / 10^scale_.
  void find_multiple(std::string_view where) {
    for (const Decimal& part : spec_.multiples) scale_ = std::max(scale_, part.fraction.size());
    for (const Decimal& part : spec_.multiples) {
      std::string digits = part.integer + part.fraction + std::string(scale_ - part.fraction.size(), '0');
      digits.erase(0, std::min(digits.find_first_not_of('0'), digits.size() - 1));
      const uint64_t value = digits.size() > 7 ? kMaxMultiple + 1 : std::stoull(digits);
      multiple_ = value > kMaxMultiple ? value : std::lcm(multiple_, value);
      if (multiple_ > kMaxMultiple || scale_ > 15) {
        throw_error(ErrorKind::kUnsupported,
                    "{}: keyword \"multipleOf\" is not supported for a value of so many digits", where);
      }
    }
  }
  // An exponent of more digits could leave what doubles hold, where validators would no longer agree.
  bool limits_exponent() const { return spec_.integer || bounded_; }

  std::optional<Digits> integer_digit(Digits d, char byte) const {
    const auto compare_digit = [&](const std::optional<Decimal>& bound, uint8_t& order) {
      if (bound && order == kEqual && d.integers < bound->integer.size()) {
        order = order_of(byte, bound->integer[d.integers]);
      }
    };
    compare_digit(spec_.min, d.to_min);
    compare_digit(spec_.max, d.to_max);
    d.nonzero |= byte != '0';
    d.integers = static_cast<uint16_t>(std::min<size_t>(d.integers + 1u, max_integers_));
    add_to_remainder(d, byte);
    return d;
  }

  void add_to_remainder(Digits& d, char byte) const {
    if (multiple_ > 1) {
      d.remainder =
          static_cast<uint32_t>((uint64_t{d.remainder} * 10 + static_cast<uint64_t>(byte - '0')) % multiple_);
    }
  }

  static uint8_t after_integer(const Digits& d, const std::optional<Decimal>& bound, uint8_t order) {
    if (!bound) return kEqual;
    if (d.integers < bound->integer.size()) return kLess;
    return d.integers > bound->integer.size() ? uint8_t{kGreater} : order;
  }

  std::optional<Digits> fraction_digit(Digits d, char byte) const {
    if (byte != '0' && spec_.integer) return std::nullopt;
    if (!spec_.multiples.empty() && d.fractions >= scale_ && byte != '0') return std::nullopt;
    const auto compare_digit = [&](const std::optional<Decimal>& bound, uint8_t& order) {
      if (!bound || order != kEqual) return;
      order = order_of(byte, d.fractions < bound->fraction.size() ? bound->fraction[d.fractions] : '0');
    };
    compare_digit(spec_.min, d.to_min);
    compare_digit(spec_.max, d.to_max);
    d.nonzero |= byte != '0';
    d.fraction_nonzero |= byte != '0';
    d.phase = kFraction;
    if (d.fractions < scale_) add_to_remainder(d, byte);
    d.fractions = static_cast<uint16_t>(std::min<size_t>(d.fractions + 1u, max_fractions_));
    return d;
  }

  std::optional<Digits> exponent(Digits d, char byte) const {
    if (byte != 'e' || !exponents_) return std::nullopt;
    return Digits{.phase = kE, .negative = d.negative, .nonzero = d.nonzero};
  }

  // The number against a bound: below 0, 0 or over 0.
  static int against(const Digits& d, const Decimal& bound, uint8_t order) {
    if (!d.nonzero) return bound.zero() ? 0 : bound.negative ? 1 : -1;
    if (bound.zero() || d.negative != bound.negative) return d.negative ? -1 : 1;
    if (d.phase == kZero || d.phase == kInteger) order = after_integer(d, bound, order);
    // The bound's digits that the number has not: the last of them is no zero.
    const size_t fractions = d.phase == kFraction ? d.fractions : 0;
    if (order == kEqual && fractions < bound.fraction.size()) order = kLess;
    const int magnitude = order == kLess ? -1 : order == kGreater ? 1 : 0;
    return d.negative ? -magnitude : magnitude;
  }

  const NumberSpec& spec_;
  uint64_t multiple_ = 1;
  size_t scale_ = 0;
  bool bounded_ = false, exponents_ = true;
  size_t max_integers_ = 1, max_fractions_ = 1;
};

// "E" is read as "e".
size_t class_of(char byte) { return byte == 'E' ? 13 : NumberDfa::kBytes.find(byte); }

}  // namespace

Decimal Decimal::of(const Json& number) {
  std::string text = number.is_number_float() ? fmt::format("{}", number.get<double>()) : number.dump();
  Decimal result;
  if (text.starts_with('-')) {
    result.negative = true;
    text.erase(0, 1);
  }
  int exponent = 0;
  if (const size_t e = text.find('e'); e != std::string::npos) {
    exponent = std::stoi(text.substr(e + 1));
    text.resize(e);
  }
  const size_t point = std::min(text.find('.'), text.size());
  std::string digits = text.substr(0, point) + (point < text.size() ? text.substr(point + 1) : "");
  int integers = static_cast<int>(point) + exponent;
  if (integers <= 0) {
    digits.insert(0, static_cast<size_t>(1 - integers), '0');
    integers = 1;
  }
  if (static_cast<size_t>(integers) > digits.size())
    digits.append(static_cast<size_t>(integers) - digits.size(), '0');
  result.integer = digits.substr(0, static_cast<size_t>(integers));
  result.fraction = digits.substr(static_cast<size_t>(integers));
  result.integer.erase(0, std::min(result.integer.find_first_not_of('0'), result.integer.size() - 1));
  while (result.fraction.ends_with('0')) result.fraction.pop_back();
  if (result.zero()) result.negative = false;
  return result;
}

std::string Decimal::text() const {
  return (negative ? "-" : "") + integer + (fraction.empty() ? "" : "." + fraction);
}

int compare(const Decimal& a, const Decimal& b) {
  if (a.negative != b.negative) return a.negative ? -1 : 1;
  int order = a.integer.size() != b.integer.size() ? (a.integer.size() < b.integer.size() ? -1 : 1)
                                                   : a.integer.compare(b.integer);
  if (order == 0) order = a.fraction.compare(b.fraction);
  return a.negative ? -order : order;
}

void NumberSpec::at_least(const Decimal& bound, bool excluded) {
  const int order = min ? compare(bound, *min) : 1;
  if (order > 0) {
    min = bound;
    min_excluded = excluded;
  } else if (order == 0) {
    min_excluded |= excluded;
  }
}

void NumberSpec::at_most(const Decimal& bound, bool excluded) {
  const int order = max ? compare(bound, *max) : -1;
  if (order < 0) {
    max = bound;
    max_excluded = excluded;
  } else if (order == 0) {
    max_excluded |= excluded;
  }
}

NumberSpec NumberSpec::both(const NumberSpec& other) const {
  NumberSpec result = *this;
  result.integer |= other.integer;
  result.fractional |= other.fractional;
  result.digits_only |= other.digits_only;
  if (other.min) result.at_least(*other.min, other.min_excluded);
  if (other.max) result.at_most(*other.max, other.max_excluded);
  for (const Decimal& multiple : other.multiples) {
    if (std::find(result.multiples.begin(), result.multiples.end(), multiple) == result.multiples.end()) {
      result.multiples.push_back(multiple);
    }
  }
  return result;
}

NumberDfa::NumberDfa(const NumberSpec& spec, std::string_view where) {
  const NumberBuilder builder(spec, where);
  std::unordered_map<uint64_t, uint32_t> index;
  std::vector<Digits> queue{{}, {}};  // state 0 is dead
  std::vector<std::vector<uint32_t>> from(2);
  states_.resize(2);
  index.emplace(Digits{}.packed(), kStart);
  for (uint32_t s = kStart; s < queue.size(); ++s) {
    states_[s].accepts = builder.accepts(queue[s]);
    for (size_t i = 0; i + 1 < kBytes.size(); ++i) {
      const std::optional<Digits> to = builder.next(queue[s], kBytes[i]);
      if (!to) continue;
      const auto [it, added] = index.try_emplace(to->packed(), static_cast<uint32_t>(queue.size()));
      if (added) {
        if (queue.size() >= kMaxNumberStates) {
          throw_error(ErrorKind::kTooLarge, "{}: multipleOf with these bounds needs too many states", where);
        }
        queue.push_back(*to);
        states_.emplace_back();
        from.emplace_back();
      }
      states_[s].next[i] = it->second;
      from[it->second].push_back(s);
    }
  }
  std::vector<uint32_t> live;
  for (uint32_t s = kStart; s < states_.size(); ++s) {
    if (states_[s].accepts) live.push_back(s);
    states_[s].live = states_[s].accepts;
  }
  while (!live.empty()) {
    const uint32_t s = live.back();
    live.pop_back();
    for (const uint32_t before : from[s]) {
      if (states_[before].live) continue;
      states_[before].live = true;
      live.push_back(before);
    }
  }
}

uint32_t NumberDfa::next(uint32_t state, char byte) const {
  const size_t i = class_of(byte);
  if (i == std::string_view::npos) return kDead;
  const uint32_t to = states_[state].next[i];
  return states_[to].live ? to : kDead;
}

std::optional<NumberSpec> number_format(std::string_view format) {
  for (const NumberFormat& known : kNumberFormats) {
    if (known.name != format) continue;
    NumberSpec spec;
    if (known.bits == 0) return spec;
    const uint64_t most = ~uint64_t{0} >> (64 - known.bits + (known.is_signed ? 1 : 0));
    spec.integer = true;
    spec.max = Decimal::of(Json(most));
    spec.min = Decimal::of(known.is_signed ? Json(-static_cast<int64_t>(most) - 1) : Json(0));
    return spec;
  }
  return std::nullopt;
}

std::vector<std::string> number_format_names() {
  std::vector<std::string> names;
  for (const NumberFormat& known : kNumberFormats) names.emplace_back(known.name);
  return names;
}

}  // namespace qiao::constrain
