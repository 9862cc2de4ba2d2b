#include "train/data.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"

namespace qiao::train {
namespace {

constexpr size_t kMostRowBytes = size_t{64} << 20;

// Uniform below `bound`, the same on every machine (the standard's distributions are not).
uint64_t below(std::mt19937_64& random, uint64_t bound) {
  const uint64_t limit = UINT64_MAX - UINT64_MAX % bound;
  uint64_t drawn = random();
  while (drawn >= limit) drawn = random();
  return drawn % bound;
}

}  // namespace

DataStream::DataStream(DataOptions options, const Tokenizer* tokenizer,
                       std::function<void(const std::string&)> warn)
    : options_(std::move(options)), tokenizer_(tokenizer), warn_(std::move(warn)) {
  if (options_.files.empty()) throw_error(ErrorKind::kInvalidInput, "data: no file was given");
  for (size_t file = 0; file < options_.files.size(); ++file) {
    files_.push_back(MappedFile::open(options_.files[file]));
    find_rows(file);
  }
  if (rows_.empty())
    throw_error(ErrorKind::kInvalidInput, "data: {} has no row; JSON objects, one a line, were expected",
                options_.files.front().string());
  if (rows_.size() > UINT32_MAX)
    throw_error(ErrorKind::kTooLarge, "data: {} rows; 2^32 are the most", rows_.size());
  is_bad_.resize(rows_.size());
  make_order();
}

void DataStream::find_rows(size_t file) {
  const std::span<const std::byte> bytes = files_[file].bytes();
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  int64_t line = 1;
  for (size_t begin = 0; begin < text.size(); ++line) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    if (text.substr(begin, end - begin).find_first_not_of(" \t\r") != std::string_view::npos)
      rows_.push_back({file, line, static_cast<int64_t>(begin), static_cast<int64_t>(end - begin)});
    begin = end + 1;
  }
}

void DataStream::make_order() {
  order_.resize(rows_.size());
  std::iota(order_.begin(), order_.end(), 0u);
  if (!options_.shuffle) return;
  std::mt19937_64 random(options_.seed * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(position_.epoch));
  for (size_t i = order_.size(); i > 1; --i) std::swap(order_[i - 1], order_[below(random, i)]);
}

void DataStream::refuse(const Row& row, const std::string& what) {
  const auto index = static_cast<size_t>(&row - rows_.data());
  if (is_bad_[index]) return;
  is_bad_[index] = true;
  ++bad_rows_;
  const std::string line =
      fmt::format("{}:{}: {}; the row is skipped", options_.files[row.file].string(), row.line, what);
  if (bad_rows_ > options_.most_bad_rows || bad_rows_ == std::ssize(rows_)) {
    throw_error(ErrorKind::kInvalidInput, "{}; {} bad rows of {} are too many", line, bad_rows_,
                rows_.size());
  }
  if (warn_) warn_(line);
}

std::vector<int32_t> DataStream::read(const Row& row) {
  const std::span<const std::byte> bytes = files_[row.file].bytes();
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + row.begin,
                              static_cast<size_t>(row.bytes));
  Json json;
  try {
    json = parse_json(text, "row", {.max_bytes = kMostRowBytes});
  } catch (const Error& error) {
    refuse(row, error.what());
    return {};
  }
  std::vector<int32_t> document;
  const auto tokens = json.is_object() ? json.find("tokens") : json.end();
  const auto words = json.is_object() ? json.find("text") : json.end();
  if (tokens != json.end() && tokens->is_array()) {
    for (const Json& token : *tokens) {
      if (!token.is_number_integer() || token < 0 || token >= options_.vocabulary_size) {
        refuse(row, fmt::format("tokens holds {}; ids below {} were expected", dump_json(token),
                                options_.vocabulary_size));
        return {};
      }
      document.push_back(token.get<int32_t>());
    }
  } else if (words != json.end() && words->is_string() && tokenizer_ != nullptr) {
    document = tokenizer_->encode(words->get_ref<const std::string&>());
    if (const std::optional<TokenId> eos = tokenizer_->eos()) document.push_back(*eos);
  } else {
    refuse(row, tokenizer_ != nullptr
                    ? R"("tokens" (a list of ids) or "text" (a string) was expected)"
                    : R"("tokens" (a list of ids) was expected: the model has no tokenizer)");
    return {};
  }
  if (document.size() < 2) {
    refuse(row, fmt::format("a document of {} tokens has nothing to learn; 2 or more were expected",
                            document.size()));
    return {};
  }
  return document;
}

void DataStream::set_position(const DataPosition& position) {
  if (position.row >= rows()) {
    throw_error(ErrorKind::kInvalidInput,
                "data: the run stands at row {} and there are {}: other files than those it began with",
                position.row, rows());
  }
  position_ = position;
  make_order();
  document_.clear();
}

TokenBatch DataStream::next(int64_t sequences) {
  TokenBatch batch;
  const auto total = static_cast<size_t>(sequences * options_.sequence);
  batch.starts.push_back(0);
  while (batch.tokens.size() < total) {
    if (document_.empty()) {
      document_ = read(rows_[order_[static_cast<size_t>(position_.row)]]);
      if (std::ssize(document_) <= position_.offset) document_.clear();
    }
    const int64_t room = options_.sequence - static_cast<int64_t>(batch.tokens.size()) % options_.sequence;
    const int64_t rest = std::ssize(document_) - position_.offset;
    const int64_t taken = document_.empty() ? 0 : std::min(room, rest);
    for (int64_t i = 0; i < taken; ++i) {
      const auto at = static_cast<size_t>(position_.offset + i);
      batch.tokens.push_back(document_[at]);
      batch.positions.push_back(static_cast<int32_t>(i));
      const bool labelled = i + 1 < taken;
      batch.labels.push_back(labelled ? document_[at + 1] : -1);
      batch.labelled += labelled ? 1 : 0;
    }
    if (taken > 0) batch.starts.push_back(static_cast<int32_t>(batch.tokens.size()));
    position_.offset += taken;
    if (!document_.empty() && taken < rest)
      continue;  // the sequence is full: the document goes on in the next
    document_.clear();
    position_.offset = 0;
    if (++position_.row == std::ssize(rows_)) {
      position_.row = 0;
      ++position_.epoch;
      make_order();
    }
  }
  return batch;
}

}  // namespace qiao::train
