#include "text/tokenizer_to_gguf.h"

#include <algorithm>
#include <optional>
#include <unordered_map>

#include "base/error.h"
#include "base/quote.h"
#include "text/gguf_pre_tokenizers.h"
#include "text/tokenizer.h"

namespace qiao {
namespace {

// tokenizer.ggml.token_type
constexpr int32_t kTokenNormal = 1, kTokenUnknown = 2, kTokenControl = 3, kTokenUserDefined = 4,
                  kTokenUnused = 5, kTokenByte = 6;
constexpr float kNoScore = -1e6f;  // of a piece that no merge makes: below all that one does

class GgufTokenizerWriter {
 public:
  GgufTokenizerWriter(const ModelFiles& files, int64_t vocabulary)
      : files_(files),
        json_(files.tokenizer_json()),
        model_(json_.at("model")),
        tokenizer_(Tokenizer::from_model(files)),  // which checks all of it
        tokens_(static_cast<size_t>(vocabulary)),
        types_(tokens_.size(), kTokenUnused) {
    if (model_.value("type", "BPE") != "BPE") refuse("model.type", model_.value("type", ""), "BPE");
  }

  GgufWriteEntries write() {
    const bool bytes = model_.value("byte_fallback", false);
    read_tokens(bytes);
    bytes ? write_sentencepiece() : write_byte_level();
    add("tokens", tokens_);
    add("token_type", types_);
    write_special();
    if (const std::string chat = files_.chat_template(); !chat.empty())
      entries_.emplace_back("tokenizer.chat_template", chat);
    return std::move(entries_);
  }

 private:
  [[noreturn]] void refuse(std::string_view field, std::string_view value, std::string_view expected) const {
    throw_error(ErrorKind::kUnsupported, "{}: tokenizer.json: {} is {}; {} was expected",
                files_.path().string(), field, quote_text(std::string(value)), expected);
  }
  void add(std::string_view key, GgufWriteValue value) {
    entries_.emplace_back(fmt::format("tokenizer.ggml.{}", key), std::move(value));
  }

  void set(const Json& id, const std::string& token, int32_t type) {
    const auto at = id.get<uint64_t>();
    if (at >= tokens_.size()) return;
    tokens_[at] = token;
    types_[at] = type;
  }

  void read_tokens(bool bytes) {
    for (const auto& [token, id] : model_.at("vocab").items()) {
      const bool is_byte = bytes && token.size() == 6 && token.starts_with("<0x") && token.ends_with(">");
      set(id, token, is_byte ? kTokenByte : kTokenNormal);
    }
    const std::string unknown = model_.contains("unk_token") && model_["unk_token"].is_string()
                                    ? model_["unk_token"].get<std::string>()
                                    : "";
    for (const Json& token : json_.value("added_tokens", Json::array())) {
      const std::string content = token.at("content").get<std::string>();
      const bool special = token.value("special", false);
      set(token.at("id"), content,
          special && bytes && content == unknown ? kTokenUnknown
          : special                              ? kTokenControl
                                                 : kTokenUserDefined);
    }
    for (size_t i = 0; i < tokens_.size(); ++i)
      if (tokens_[i].empty()) tokens_[i] = fmt::format("[PAD{}]", i);
  }

  std::vector<std::pair<std::string, std::string>> merges() const {
    std::vector<std::pair<std::string, std::string>> list;
    for (const Json& merge : model_.at("merges")) {
      if (merge.is_array()) {
        list.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
      } else {
        const std::string text = merge.get<std::string>();
        const size_t space = text.find(' ');
        list.emplace_back(text.substr(0, space), text.substr(space + 1));
      }
    }
    return list;
  }

  void write_byte_level() {
    const Json pre = json_.value("pre_tokenizer", Json());
    const std::string_view name = tokenization::find_gguf_pre_tokenizer(
        pre, model_.value("ignore_merges", false), tokenizer_->adds_bos());
    if (name.empty()) {
      refuse("pre_tokenizer", dump_json(pre).substr(0, 200),
             fmt::format("one that GGUF files have a name for ({})",
                         fmt::join(tokenization::gguf_pre_tokenizer_names(), ", ")));
    }
    std::vector<std::string> list;
    for (const auto& [left, right] : merges()) list.push_back(left + " " + right);
    add("model", std::string("gpt2"));
    add("pre", std::string(name));
    add("merges", std::move(list));
  }

  // Scores by which SentencePiece joins in the order of the merges: a piece's is that of the first that makes
  // it.
  void write_sentencepiece() {
    std::unordered_map<std::string, float> scores;
    float rank = 0;
    for (const auto& [left, right] : merges()) scores.emplace(left + right, -rank), ++rank;
    std::vector<float> list(tokens_.size(), kNoScore);
    for (size_t i = 0; i < tokens_.size(); ++i) {
      const auto found = scores.find(tokens_[i]);
      if (types_[i] != kTokenNormal) list[i] = 0;
      if (types_[i] == kTokenNormal && found != scores.end()) list[i] = found->second;
    }
    add("model", std::string("llama"));
    add("pre", std::string("default"));
    add("scores", std::move(list));
    const std::string normalizer = dump_json(json_.value("normalizer", Json())),
                      pre = dump_json(json_.value("pre_tokenizer", Json()));
    const bool prepends = normalizer.find("Prepend") != std::string::npos ||
                          (pre.find("Metaspace") != std::string::npos &&
                           pre.find(R"("prepend_scheme":"never")") == std::string::npos &&
                           pre.find(R"("add_prefix_space":false)") == std::string::npos);
    add("add_space_prefix", prepends);
  }

  void write_special() {
    // What stands before and after a text, whatever its own tokens are.
    const std::vector<TokenId> plain = tokenizer_->encode("a"),
                               framed = tokenizer_->encode("a", {.add_special = true});
    const auto text = std::search(framed.begin(), framed.end(), plain.begin(), plain.end());
    const std::vector<TokenId> before(framed.begin(), text);
    const std::vector<TokenId> after(text == framed.end() ? text : text + std::ssize(plain), framed.end());
    if (before.size() > 1 || after.size() > 1)
      refuse("post_processor", fmt::format("{} and {} tokens around a text", before.size(), after.size()),
             "one on each side at most");
    const auto id = [&](const char* key, std::optional<TokenId> token) {
      if (token && *token < std::ssize(tokens_)) add(key, static_cast<uint32_t>(*token));
    };
    id("bos_token_id", before.empty() ? tokenizer_->bos() : before.front());
    id("eos_token_id", after.empty() ? tokenizer_->eos() : after.front());
    id("padding_token_id", tokenizer_->pad());
    const auto unknown = std::ranges::find(types_, kTokenUnknown);
    if (unknown != types_.end()) add("unknown_token_id", static_cast<uint32_t>(unknown - types_.begin()));
    add("add_bos_token", !before.empty());
    add("add_eos_token", !after.empty());
  }

  const ModelFiles& files_;
  const Json& json_;
  const Json& model_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::vector<std::string> tokens_;
  std::vector<int32_t> types_;
  GgufWriteEntries entries_;
};

}  // namespace

GgufWriteEntries gguf_tokenizer_of(const ModelFiles& files, int64_t vocabulary) {
  return GgufTokenizerWriter(files, vocabulary).write();
}

}  // namespace qiao
