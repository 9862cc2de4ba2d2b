#include "constrain/chars.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

namespace qiao::constrain {
namespace {

// What has come of a character, in 32 bits: what kind of thing it is, how many bytes or digits are left, and
// the bits read so far. All of them stand for one range of characters that it may still become.
enum Pending : uint32_t {
  kNone,
  kUtf8,           // `left` continuation bytes are missing
  kEscape,         // after a backslash
  kHex,            // after \u: `left` digits are missing
  kHighSurrogate,  // after \uD83D: a backslash must come (value: the ten bits)
  kSecondEscape,   // after \uD83D\ .
  kLowHex,         // after \uD83D\u: `left` digits are missing (value: ten bits, then the digits)
};

constexpr uint32_t pack(Pending kind, uint32_t left, uint32_t value) {
  return static_cast<uint32_t>(kind) << 29 | left << 26 | value;
}
constexpr Pending kind_of(uint32_t pending) { return static_cast<Pending>(pending >> 29); }
constexpr uint32_t left_of(uint32_t pending) { return pending >> 26 & 7; }
constexpr uint32_t value_of(uint32_t pending) { return pending & 0x3FFFFFF; }

constexpr std::array<std::pair<char, uint32_t>, 8> kShortEscapes = {
    {{'"', '"'}, {'\\', '\\'}, {'/', '/'}, {'b', '\b'}, {'f', '\f'}, {'n', '\n'}, {'r', '\r'}, {'t', '\t'}}};

bool must_escape(uint32_t c) { return c < 0x20 || c == '"' || c == '\\'; }
bool has_short_escape(uint32_t c) {
  return c != '/' &&
         std::any_of(kShortEscapes.begin(), kShortEscapes.end(), [&](auto e) { return e.second == c; });
}

class CharExpander {
 public:
  CharExpander(const CharSteps& steps, CharSpelling spelling, const std::function<StateKey(uint64_t)>& whole,
               const std::function<StateKey(uint32_t)>& part, Expansion& out)
      : steps_(steps.steps), spelling_(spelling), whole_(whole), part_(part), out_(out) {}

  void expand(uint32_t pending) {
    switch (kind_of(pending)) {
      case kNone:
        return first_byte();
      case kUtf8:
        return continuation(left_of(pending), value_of(pending));
      case kEscape:
        return after_backslash();
      case kHex:
        return hex_digit(left_of(pending), value_of(pending));
      case kHighSurrogate:
        return out_.edge('\\', part_(pack(kSecondEscape, 0, value_of(pending))));
      case kSecondEscape:
        return out_.edge('u', part_(pack(kLowHex, 4, value_of(pending))));
      case kLowHex:
        return low_digit(left_of(pending), value_of(pending));
    }
  }

 private:
  using Step = CharSteps::Step;
  // The step that takes c, or nullptr.
  const Step* find(uint32_t c) const {
    const auto after = std::upper_bound(steps_.begin(), steps_.end(), c,
                                        [](uint32_t value, const Step& step) { return value < step.lo; });
    return after == steps_.begin() || c > (after - 1)->hi ? nullptr : &*(after - 1);
  }
  // Whether a character of [lo, hi] can be taken.
  bool any(uint32_t lo, uint32_t hi) const {
    const auto first = std::lower_bound(steps_.begin(), steps_.end(), lo,
                                        [](const Step& step, uint32_t value) { return step.hi < value; });
    return first != steps_.end() && first->lo <= hi;
  }
  void byte(uint32_t b, const StateKey& to) {
    const auto c = static_cast<uint8_t>(b);
    // Neighbouring bytes with one target are one edge.
    if (!out_.edges.empty()) {
      Expansion::Edge& last = out_.edges.back();
      if (!last.calls && last.hi + 1 == c && last.to == to) {
        last.hi = c;
        return;
      }
    }
    out_.edge(c, c, to);
  }

  void first_byte() {
    const bool json = spelling_ != CharSpelling::kUtf8;
    for (const Step& step : steps_) {
      if (step.lo > 0x7F) break;
      const StateKey to = whole_(step.to);
      for (uint32_t c = step.lo; c <= std::min<uint32_t>(step.hi, 0x7F); ++c) {
        if (!json || !must_escape(c)) byte(c, to);
      }
    }
    for (uint32_t lead = 0xC2; lead <= 0xF4; ++lead) {
      const uint32_t left = lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
      const uint32_t bits = lead & (0x3Fu >> left);
      if (any_after(left, bits)) byte(lead, part_(pack(kUtf8, left, bits)));
    }
    if (!json || steps_.empty()) return;
    const bool escapes = spelling_ == CharSpelling::kJson || any(0, 0x1F) || any('"', '"') || any('\\', '\\');
    if (escapes) byte('\\', part_(pack(kEscape, 0, 0)));
  }

  // Whether a character that begins with `bits` and has `left` more bytes can be taken. Overlong forms,
  // surrogates and what is over U+10FFFF are in no step, and cut off here by the length's range.
  bool any_after(uint32_t left, uint32_t bits) const {
    const uint32_t lo = bits << (6 * left), hi = lo | ((1u << (6 * left)) - 1);
    // Only right after the lead byte can the bits be so few.
    if (left == 2 && bits < 0x10) return any(std::max<uint32_t>(lo, 0x800), hi);
    if (left == 3) return any(std::max<uint32_t>(lo, 0x10000), hi);
    return any(lo, hi);
  }

  void continuation(uint32_t left, uint32_t bits) {
    for (uint32_t low = 0; low < 64; ++low) {
      const uint32_t next = bits << 6 | low;
      if (left == 1) {
        if (const Step* step = find(next)) byte(0x80 | low, whole_(step->to));
        continue;
      }
      // The second byte rules out overlong forms: of three bytes under U+0800, of four under U+10000.
      const bool three = left == 2 && bits < 0x10;
      if ((three && next < 0x20) || (left == 3 && next < 0x10)) continue;
      const uint32_t lo = next << (6 * (left - 1));
      if (any(lo, lo | ((1u << (6 * (left - 1))) - 1))) byte(0x80 | low, part_(pack(kUtf8, left - 1, next)));
    }
  }

  void after_backslash() {
    const bool canonical = spelling_ == CharSpelling::kJsonCanonical;
    for (const auto& [letter, c] : kShortEscapes) {
      if (canonical && c == '/') continue;
      if (const Step* step = find(c)) out_.edge(letter, whole_(step->to));
    }
    bool unicode = !canonical;
    for (uint32_t c = 0; c < 0x20 && !unicode; ++c) unicode = !has_short_escape(c) && find(c) != nullptr;
    if (unicode) out_.edge('u', part_(pack(kHex, 4, 0)));
  }

  // Whether \u escapes of [lo, hi] may begin here.
  bool any_escape(uint32_t lo, uint32_t hi) const {
    if (spelling_ == CharSpelling::kJsonCanonical) {
      for (uint32_t c = lo; c <= std::min<uint32_t>(hi, 0x1F); ++c) {
        if (!has_short_escape(c) && find(c) != nullptr) return true;
      }
      return false;
    }
    if (any(lo, hi)) return true;
    // A high surrogate stands for 1,024 characters.
    const uint32_t from = std::max<uint32_t>(lo, 0xD800), to = std::min<uint32_t>(hi, 0xDBFF);
    return from <= to && any(0x10000 + ((from - 0xD800) << 10), 0x10000 + ((to - 0xD800) << 10) + 0x3FF);
  }

  template <typename Take>
  void each_hex_digit(Take&& take) {
    for (uint32_t digit = 0; digit < 16; ++digit) {
      if (digit < 10) take(digit, '0' + digit);
      if (digit >= 10) take(digit, 'A' + digit - 10);
    }
    for (uint32_t digit = 10; digit < 16; ++digit) take(digit, 'a' + digit - 10);
  }

  void hex_digit(uint32_t left, uint32_t value) {
    each_hex_digit([&](uint32_t digit, uint32_t b) {
      const uint32_t next = value << 4 | digit;
      const uint32_t lo = next << (4 * (left - 1)), hi = lo | ((1u << (4 * (left - 1))) - 1);
      if (!any_escape(lo, hi)) return;
      if (left > 1) {
        byte(b, part_(pack(kHex, left - 1, next)));
      } else if (next >= 0xD800 && next <= 0xDBFF) {
        byte(b, part_(pack(kHighSurrogate, 0, next - 0xD800)));
      } else if (const Step* step = find(next)) {
        byte(b, whole_(step->to));
      }
    });
  }

  void low_digit(uint32_t left, uint32_t value) {
    const uint32_t read = 4 - left;  // digits so far
    const uint32_t high = value >> (4 * read), digits = value & ((1u << (4 * read)) - 1);
    each_hex_digit([&](uint32_t digit, uint32_t b) {
      const uint32_t next = digits << 4 | digit;
      const uint32_t lo = std::max<uint32_t>(next << (4 * (left - 1)), 0xDC00);
      const uint32_t hi =
          std::min<uint32_t>(next << (4 * (left - 1)) | ((1u << (4 * (left - 1))) - 1), 0xDFFF);
      const uint32_t base = 0x10000 + (high << 10);
      if (lo > hi || !any(base + (lo - 0xDC00), base + (hi - 0xDC00))) return;
      if (left > 1) {
        byte(b, part_(pack(kLowHex, left - 1, high << (4 * (read + 1)) | next)));
      } else if (const Step* step = find(base + (next - 0xDC00))) {
        byte(b, whole_(step->to));
      }
    });
  }

  const std::vector<Step>& steps_;
  CharSpelling spelling_;
  const std::function<StateKey(uint64_t)>& whole_;
  const std::function<StateKey(uint32_t)>& part_;
  Expansion& out_;
};

}  // namespace

void expand_chars(const CharSteps& steps, uint32_t pending, CharSpelling spelling,
                  const std::function<StateKey(uint64_t)>& whole,
                  const std::function<StateKey(uint32_t)>& part, Expansion& out) {
  CharExpander(steps, spelling, whole, part, out).expand(pending);
}

}  // namespace qiao::constrain
