#include "train/rows.h"

#include <algorithm>
#include <numeric>
#include <random>

#include "base/error.h"
#include "formats/json_lines.h"
#include "text/utf8.h"

namespace qiao::train {
namespace {

namespace fs = std::filesystem;

constexpr size_t kPieceBytes = size_t{1} << 20;
constexpr size_t kReleaseBytes = size_t{64} << 20;

// Uniform below `bound`, the same on every machine (the standard's distributions are not).
uint64_t below(std::mt19937_64& random, uint64_t bound) {
  const uint64_t limit = UINT64_MAX - UINT64_MAX % bound;
  uint64_t drawn = random();
  while (drawn >= limit) drawn = random();
  return drawn % bound;
}

bool has_extension(const fs::path& path, std::initializer_list<std::string_view> extensions) {
  const std::string extension = path.extension().string();
  return std::ranges::find(extensions, extension) != extensions.end();
}

std::vector<fs::path> files_below(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code error;
  fs::recursive_directory_iterator entry(folder, error);
  for (; !error && entry != fs::recursive_directory_iterator(); entry.increment(error)) {
    if (entry->path().filename().string().starts_with(".")) {
      entry.disable_recursion_pending();
    } else if (entry->is_regular_file(error) && !error) {
      files.push_back(entry->path());
    }
  }
  if (error) throw_error(ErrorKind::kIo, "{}: {}", folder.string(), error.message());
  std::ranges::sort(files);
  return files;
}

}  // namespace

Rows::Rows(RowOptions options, Warn warn) : options_(std::move(options)), warn_(std::move(warn)) {
  if (options_.files.empty()) throw_error(ErrorKind::kInvalidInput, "data: no file was given");
  for (const fs::path& path : options_.files) add(path);
  if (index_.empty()) {
    throw_error(ErrorKind::kInvalidInput,
                "data: {} has no row; JSON objects, one a line, or texts (*.txt, *.md) were expected",
                options_.files.front().string());
  }
  if (index_.size() > UINT32_MAX)
    throw_error(ErrorKind::kTooLarge, "data: {} rows; 2^32 are the most", index_.size());
  is_bad_.resize(index_.size());
}

void Rows::add(const fs::path& path) {
  std::error_code ignored;
  if (!fs::is_directory(path, ignored)) return add_file(path, has_extension(path, {".txt", ".md"}));
  for (const fs::path& file : files_below(path)) {
    if (fs::file_size(file) == 0) {
      if (warn_) warn_(fmt::format("{}: the file is empty and is skipped", file.string()));
    } else {
      add_file(file, !has_extension(file, {".jsonl", ".ndjson", ".json"}));
    }
  }
}

void Rows::add_file(const fs::path& path, bool is_text) {
  sources_.push_back({path, 0, is_text});
  mapped_file_ = SIZE_MAX;
  mapped_ = MappedFile::open(path);
  mapped_file_ = sources_.size() - 1;
  sources_.back().size = mapped_.size();
  const std::string_view text(reinterpret_cast<const char*>(mapped_.bytes().data()), mapped_.size());
  if (is_text) {
    find_pieces(text, byte_order_mark(text));
  } else {
    find_lines(text);
  }
}

void Rows::add_row(size_t begin, size_t end, size_t line, Kind kind) {
  Place place;
  place.begin = begin;
  place.bytes = static_cast<uint32_t>(std::min<size_t>(end - begin, UINT32_MAX));
  place.file = static_cast<uint32_t>(sources_.size() - 1);
  place.line = static_cast<uint32_t>(std::min<size_t>(line, UINT32_MAX));
  place.kind = kind;
  index_.push_back(place);
}

void Rows::find_lines(std::string_view text) {
  JsonLines lines(text);
  size_t released = 0;
  while (const std::optional<JsonLines::Line> line = lines.next()) {
    add_row(line->begin, line->end, static_cast<size_t>(line->number), Kind::kJson);
    if (line->end - released > kReleaseBytes) {
      mapped_.release(released, line->end - released);
      released = line->end;
    }
  }
}

void Rows::find_pieces(std::string_view text, size_t begin) {
  size_t line = 1;
  while (begin < text.size()) {
    size_t end = text.size();
    if (end - begin > kPieceBytes) {
      const size_t newline = text.rfind('\n', begin + kPieceBytes - 1);
      end = newline != std::string_view::npos && newline > begin ? newline + 1 : begin + kPieceBytes;
      // Where a line is as long as this, behind a whole character.
      for (int i = 0; i < 3 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80; ++i) --end;
    }
    add_row(begin, end, line, end < text.size() ? Kind::kTextGoesOn : Kind::kText);
    line += static_cast<size_t>(std::count(text.begin() + static_cast<int64_t>(begin),
                                           text.begin() + static_cast<int64_t>(end), '\n'));
    mapped_.release(begin, end - begin);
    begin = end;
  }
}

int64_t Rows::at(int64_t epoch, int64_t place) {
  if (!options_.shuffle) return place;
  if (ordered_ != epoch) {
    order_.resize(index_.size());
    std::iota(order_.begin(), order_.end(), 0u);
    std::mt19937_64 random(options_.seed * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(epoch));
    for (size_t i = order_.size(); i > 1; --i) std::swap(order_[i - 1], order_[below(random, i)]);
    ordered_ = epoch;
  }
  return order_[static_cast<size_t>(place)];
}

std::string_view Rows::open(size_t file) {
  const Source& source = sources_[file];
  if (mapped_file_ != file) {
    mapped_file_ = SIZE_MAX;
    mapped_ = MappedFile::open(source.path);
    mapped_file_ = file;
  }
  if (mapped_.size() != source.size) {
    throw_error(ErrorKind::kIo, "{}: has {} bytes and had {} when the run began: the file was changed",
                source.path.string(), mapped_.size(), source.size);
  }
  return {reinterpret_cast<const char*>(mapped_.bytes().data()), mapped_.size()};
}

std::optional<Row> Rows::read(int64_t row) {
  const Place& place = index_[static_cast<size_t>(row)];
  const std::string_view text = open(place.file).substr(place.begin, place.bytes);
  if (place.kind == Kind::kJson) {
    try {
      return Row{parse_json_line(text)};
    } catch (const Error& error) {
      refuse(row, error.what());
      return std::nullopt;
    }
  }
  if (!tokenization::utf8_valid(text)) {
    refuse(row, "the text is not valid UTF-8");
    return std::nullopt;
  }
  return Row{{{"text", text}}, place.kind == Kind::kText};
}

std::string Rows::where(int64_t row) const {
  const Place& place = index_[static_cast<size_t>(row)];
  return fmt::format("{}:{}", sources_[place.file].path.string(), place.line);
}

void Rows::refuse(int64_t row, const std::string& what) {
  if (is_bad(row)) return;
  is_bad_[static_cast<size_t>(row)] = true;
  ++bad_rows_;
  const std::string line = fmt::format("{}: {}; the row is skipped", where(row), what);
  if (bad_rows_ > options_.most_bad_rows || bad_rows_ == size())
    throw_error(ErrorKind::kInvalidInput, "{}; {} bad rows of {} are too many", line, bad_rows_, size());
  if (warn_) warn_(line);
}

uint64_t Rows::all_bytes() const {
  uint64_t bytes = 0;
  for (const Source& source : sources_) bytes += source.size;
  return bytes;
}

Json Rows::state() const {
  Json bad = Json::array();
  for (int64_t row = 0; row < size(); ++row)
    if (is_bad(row)) bad.push_back(row);
  return {{"rows", size()}, {"bytes", all_bytes()}, {"bad_rows", bad}};
}

void Rows::set_state(const Json& state) {
  const auto rows = state.find("rows"), bytes = state.find("bytes"), bad = state.find("bad_rows");
  if (rows == state.end() || bytes == state.end() || bad == state.end() || !bad->is_array())
    throw_error(ErrorKind::kInvalidInput, "checkpoint: data.rows, bytes and bad_rows are missing");
  if (*rows != size() || *bytes != all_bytes()) {
    if (warn_) {
      warn_(
          fmt::format("data: {} rows in {} bytes; the run began with {} in {}: it goes on in other files, at "
                      "the same place",
                      size(), all_bytes(), dump_json(*rows), dump_json(*bytes)));
    }
    return;
  }
  for (const Json& row : *bad) {
    if (!row.is_number_integer() || row < 0 || row >= size())
      throw_error(ErrorKind::kInvalidInput, "checkpoint: data.bad_rows holds {}", dump_json(row));
    is_bad_[row.get<size_t>()] = true;
  }
  bad_rows_ = std::ranges::count(is_bad_, true);
}

}  // namespace qiao::train
