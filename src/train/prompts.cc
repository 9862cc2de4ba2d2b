#include "train/prompts.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <random>

#include "base/error.h"
#include "base/file.h"

namespace qiao::train {

// Rows of JSON Lines files, in the order of an epoch.
class Prompts::Lines {
 public:
  Lines(DataOptions options, std::function<void(const std::string&)> warn)
      : options_(std::move(options)), warn_(std::move(warn)) {
    if (options_.files.empty()) throw_error(ErrorKind::kInvalidInput, "data: no file was given");
    for (size_t file = 0; file < options_.files.size(); ++file) {
      files_.push_back(MappedFile::open(options_.files[file]));
      const std::string_view text = text_of(file);
      int64_t line = 1;
      for (size_t begin = 0; begin < text.size(); ++line) {
        const size_t end = std::min(text.find('\n', begin), text.size());
        const std::string_view row = text.substr(begin, end - begin);
        if (row.find_first_not_of(" \t\r") != std::string_view::npos) index_.push_back({file, line, row});
        begin = end + 1;
      }
    }
    if (index_.empty()) {
      throw_error(ErrorKind::kInvalidInput, "data: {} has no row; JSON objects, one a line, were expected",
                  options_.files.front().string());
    }
    is_bad_.resize(index_.size());
  }

  int64_t size() const { return std::ssize(index_); }

  int64_t at(int64_t epoch, int64_t place) {
    if (epoch != ordered_) {
      order_.resize(index_.size());
      std::iota(order_.begin(), order_.end(), int64_t{0});
      std::mt19937_64 random(options_.seed * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(epoch));
      for (size_t i = order_.size(); options_.shuffle && i > 1; --i)
        std::swap(order_[i - 1], order_[random() % i]);
      ordered_ = epoch;
    }
    return order_[static_cast<size_t>(place)];
  }

  std::string where(int64_t row) const {
    const Place& place = index_[static_cast<size_t>(row)];
    return fmt::format("{}:{}", options_.files[place.file].string(), place.line);
  }

  Json read(int64_t row) const {
    return parse_json(index_[static_cast<size_t>(row)].text, "row", {.max_bytes = size_t{64} << 20});
  }

  void refuse(int64_t row, const std::string& what) {
    if (is_bad_[static_cast<size_t>(row)]) return;
    is_bad_[static_cast<size_t>(row)] = true;
    const std::string line = fmt::format("{}: {}; the row is skipped", where(row), what);
    if (++bad_ > options_.most_bad_rows || bad_ == size())
      throw_error(ErrorKind::kInvalidInput, "{}; {} bad rows of {} are too many", line, bad_, size());
    if (warn_) warn_(line);
  }

 private:
  struct Place {
    size_t file;
    int64_t line;
    std::string_view text;
  };
  std::string_view text_of(size_t file) const {
    const std::span<const std::byte> bytes = files_[file].bytes();
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

  DataOptions options_;
  std::function<void(const std::string&)> warn_;
  std::vector<MappedFile> files_;
  std::vector<Place> index_;
  std::vector<int64_t> order_;
  int64_t ordered_ = -1, bad_ = 0;
  std::vector<bool> is_bad_;
};

Prompts::Prompts(const DataOptions& options, const LanguageModel& model, const ToolTurns& turns,
                 int64_t most_tokens, std::function<void(const std::string&)> warn)
    : model_(model),
      turns_(turns),
      most_tokens_(most_tokens),
      rows_(std::make_unique<Lines>(options, std::move(warn))) {}

Prompts::~Prompts() = default;

Prompt Prompts::make(Json row) const {
  constexpr const char* kExpected =
      R"("prompt" (a text or a list of messages), "messages" or "tokens" (a list of ids) was expected)";
  if (!row.is_object()) throw_error(ErrorKind::kInvalidInput, "an object was expected; in it {}", kExpected);
  Prompt prompt;
  const auto member = [&](const char* name, auto is) {
    const auto found = row.find(name);
    return found != row.end() && is(*found) ? &*found : nullptr;
  };
  const auto is_list = [](const Json& value) { return value.is_array() && !value.empty(); };
  const Json* messages = member("messages", is_list);
  if (messages == nullptr) messages = member("prompt", is_list);
  const Json* text = member("prompt", [](const Json& value) { return value.is_string(); });
  if (const Json* variables =
          member("chat_template_kwargs", [](const Json& value) { return value.is_object(); }))
    prompt.variables = *variables;
  if (messages != nullptr) {
    for (const Json& message : *messages) {
      if (!message.is_object() || !message.contains("role") || !message["role"].is_string())
        throw_error(ErrorKind::kInvalidInput, R"(messages: objects with "role" and "content" were expected)");
    }
    prompt.messages = *messages;
    prompt.text = turns_.render_prompt(prompt.messages, prompt.variables);
    prompt.tokens = model_.encode_rendered_chat(prompt.text);
  } else if (text != nullptr) {
    prompt.text = text->get<std::string>();
    prompt.tokens = model_.encode_prompt(prompt.text);
  } else if (const Json* tokens = member("tokens", is_list)) {
    const int64_t vocabulary = model_.decoder().config().vocabulary_size;
    for (const Json& token : *tokens) {
      if (!token.is_number_integer() || token < 0 || token >= vocabulary) {
        throw_error(ErrorKind::kInvalidInput, "tokens holds {}; ids below {} were expected", dump_json(token),
                    vocabulary);
      }
      prompt.tokens.push_back(token.get<TokenId>());
    }
  } else {
    throw_error(ErrorKind::kInvalidInput, "{}", kExpected);
  }
  if (prompt.tokens.empty() || std::ssize(prompt.tokens) > most_tokens_) {
    throw_error(ErrorKind::kInvalidInput,
                "a prompt of {} tokens; 1 to {} were expected (--seq less --max-tokens)",
                prompt.tokens.size(), most_tokens_);
  }
  prompt.row = std::move(row);
  return prompt;
}

std::vector<Prompt> Prompts::next(int64_t count) {
  std::vector<Prompt> prompts;
  while (std::ssize(prompts) < count) {
    const int64_t row = rows_->at(position_.epoch, position_.row);
    try {
      prompts.push_back(make(rows_->read(row)));
      prompts.back().where = rows_->where(row);
    } catch (const Error& error) {
      rows_->refuse(row, error.what());
    }
    if (++position_.row == rows_->size()) position_ = {position_.epoch + 1, 0, 0};
  }
  return prompts;
}

DataPosition Prompts::position() const { return position_; }

void Prompts::set_position(const DataPosition& position) {
  if (position.row >= rows_->size()) {
    throw_error(ErrorKind::kInvalidInput,
                "data: the run stands at row {} and there are {}: other files than those it began with",
                position.row, rows_->size());
  }
  position_ = position;
}

}  // namespace qiao::train
