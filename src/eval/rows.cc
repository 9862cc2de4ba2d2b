#include "eval/rows.h"

#include <string_view>

#include "base/error.h"
#include "base/file.h"
#include "base/quote.h"
#include "formats/json_lines.h"

namespace qiao::eval {
namespace {

constexpr int64_t kMostTold = 20;

std::string shown(const Json& value) { return printable(dump_json(value), 60); }

}  // namespace

void BadRows::tell(const Row& row, const std::string& what) {
  ++count_;
  if (!warn_ || count_ > kMostTold + 1) return;
  warn_(count_ <= kMostTold ? fmt::format("{}: {}; the row is skipped", row.where(), what)
                            : "more bad rows are counted and not told");
}

std::vector<Row> read_rows(const std::filesystem::path& file, BadRows& bad) {
  const MappedFile mapped = MappedFile::open(file);
  const std::span<const std::byte> bytes = mapped.bytes();
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  std::vector<Row> rows;
  JsonLines lines(text);
  while (const std::optional<JsonLines::Line> line = lines.next()) {
    Row row{nullptr, file.string(), line->number};
    try {
      row.json = parse_json_line(text.substr(line->begin, line->end - line->begin));
      if (!row.json.is_object()) {
        bad.tell(row, fmt::format("is {}; a JSON object was expected", row.json.type_name()));
        continue;
      }
      rows.push_back(std::move(row));
    } catch (const Error& error) {
      bad.tell(row, error.what());
    }
  }
  if (rows.empty() && bad.count() == 0) {
    throw_error(ErrorKind::kInvalidInput, "{}: has no row; JSON objects, one a line, were expected",
                file.string());
  }
  return rows;
}

const Json* find_field(const Row& row, std::initializer_list<const char*> names) {
  for (const char* name : names) {
    if (const auto found = row.json.find(name); found != row.json.end()) return &*found;
  }
  return nullptr;
}

const std::string& text_of(const Json& value, const std::string& field) {
  if (!value.is_string())
    throw_error(ErrorKind::kInvalidInput, "{} is {}; a text was expected", field, shown(value));
  return value.get_ref<const std::string&>();
}

std::vector<std::string> texts_of(const Json& value, const std::string& field) {
  if (!value.is_array() || value.empty())
    throw_error(ErrorKind::kInvalidInput, "{} is {}; a list of texts was expected", field, shown(value));
  std::vector<std::string> texts;
  for (size_t i = 0; i < value.size(); ++i)
    texts.push_back(text_of(value[i], fmt::format("{}[{}]", field, i)));
  return texts;
}

}  // namespace qiao::eval
