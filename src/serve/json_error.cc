#include "serve/json_error.h"

#include <fmt/format.h>

#include <vector>

#include "base/json.h"
#include "base/quote.h"

namespace qiao::serve {
namespace {

constexpr size_t kMostPathBytes = 200;

// Follows a parse; where that ends, the stack says in what.
class PathFinder final : public nlohmann::json_sax<Json> {
 public:
  explicit PathFinder(size_t max_depth) : max_depth_(max_depth) {}

  bool null() override { return next(); }
  bool boolean(bool) override { return next(); }
  bool number_integer(number_integer_t) override { return next(); }
  bool number_unsigned(number_unsigned_t) override { return next(); }
  bool number_float(number_float_t, const string_t&) override { return next(); }
  bool string(string_t&) override { return next(); }
  bool binary(binary_t&) override { return next(); }
  bool start_object(size_t) override { return push(false); }
  bool start_array(size_t) override { return push(true); }
  bool key(string_t& name) override {
    levels_.back().name = name;
    return true;
  }
  bool end_object() override { return pop(); }
  bool end_array() override { return pop(); }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception&) override { return false; }

  std::string path() const {
    std::string text;
    for (const Level& level : levels_) {
      if (level.is_array) {
        text += fmt::format("[{}]", level.index);
      } else if (!level.name.empty()) {
        text += (text.empty() ? "" : ".") + level.name;
      }
      if (text.size() > kMostPathBytes) break;
    }
    return printable(text, kMostPathBytes);
  }

 private:
  struct Level {
    bool is_array = false;
    size_t index = 0;
    std::string name;
  };
  bool next() {  // a value has ended
    if (!levels_.empty() && levels_.back().is_array) ++levels_.back().index;
    return true;
  }
  bool push(bool is_array) {
    if (levels_.size() >= max_depth_) return false;
    levels_.push_back({.is_array = is_array, .index = 0, .name = {}});
    return true;
  }
  bool pop() {
    levels_.pop_back();
    return next();
  }
  size_t max_depth_;
  std::vector<Level> levels_;
};

}  // namespace

std::string field_of_json_error(std::string_view text, size_t max_depth) {
  PathFinder finder(max_depth);
  Json::sax_parse(text.begin(), text.end(), &finder);
  return finder.path();
}

}  // namespace qiao::serve
