#include "text/tokenizer_export.h"

#include <algorithm>
#include <unordered_map>

#include "base/error.h"
#include "base/quote.h"
#include "text/gguf_pre_tokenizers.h"
#include "text/tokenizer.h"

namespace qiao {
namespace {

constexpr int64_t kTypeUnknown = 2, kTypeControl = 3, kTypeUserDefined = 4;
constexpr std::string_view kLowLine = "▁";

class TokenizerExporter {
 public:
  explicit TokenizerExporter(const GgufMetadata& metadata)
      : metadata_(metadata), tokenizer_(Tokenizer::from_gguf(metadata)) {  // which checks all of it
    model_ = *metadata.find_string("tokenizer.ggml.model");
    tokens_ = metadata.find_strings("tokenizer.ggml.tokens");
    if (const auto types = metadata.find_ints("tokenizer.ggml.token_type")) types_ = *types;
    types_.resize(tokens_->size(), 1);
    if (model_ != "gpt2" && model_ != "llama") {
      throw_error(ErrorKind::kUnsupported,
                  "{}: tokenizer.ggml.model {} cannot be written as a tokenizer.json; gpt2 and llama can",
                  metadata.source, quote_text(model_));
    }
  }

  Json tokenizer_json() {
    Json json = {{"version", "1.0"}, {"truncation", nullptr}, {"padding", nullptr}};
    json["added_tokens"] = added_tokens();
    json["normalizer"] = nullptr;
    json["pre_tokenizer"] = nullptr;
    json["post_processor"] = nullptr;
    json["decoder"] = nullptr;
    json["model"] = {{"type", "BPE"},
                     {"dropout", nullptr},
                     {"unk_token", nullptr},
                     {"continuing_subword_prefix", nullptr},
                     {"end_of_word_suffix", nullptr},
                     {"fuse_unk", false},
                     {"byte_fallback", false},
                     {"ignore_merges", false},
                     {"vocab", vocabulary()}};
    model_ == "gpt2" ? fill_byte_level(json) : fill_sentencepiece(json);
    frame(json);
    return json;
  }

  Json tokenizer_config(int64_t context) const {
    Json json = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                 {"add_bos_token", tokenizer_->adds_bos()},
                 {"add_eos_token", adds_eos()},
                 {"clean_up_tokenization_spaces", false},
                 {"model_max_length", context}};
    const auto name = [&](const char* key, std::optional<TokenId> id) {
      if (id) json[key] = (*tokens_)[static_cast<size_t>(*id)];
    };
    name("bos_token", tokenizer_->bos());
    name("eos_token", tokenizer_->eos());
    name("pad_token", tokenizer_->pad());
    name("unk_token", unknown());
    Json decoder = Json::object();
    for (const Json& token : added_tokens()) {
      Json entry = token;
      entry.erase("id");
      decoder[fmt::to_string(token["id"].get<int64_t>())] = entry;
    }
    json["added_tokens_decoder"] = decoder;
    if (const std::string* chat = metadata_.find_string("tokenizer.chat_template"))
      json["chat_template"] = *chat;
    return json;
  }

  Json generation_config() const {
    Json json = Json::object();
    if (tokenizer_->bos()) json["bos_token_id"] = *tokenizer_->bos();
    if (tokenizer_->pad()) json["pad_token_id"] = *tokenizer_->pad();
    std::vector<TokenId> ends;
    if (tokenizer_->eos()) ends.push_back(*tokenizer_->eos());
    for (const TokenId id : tokenizer_->end_of_generation())
      if (std::ranges::find(ends, id) == ends.end()) ends.push_back(id);
    if (ends.size() == 1) json["eos_token_id"] = ends.front();
    if (ends.size() > 1) json["eos_token_id"] = ends;
    return json;
  }

 private:
  std::string where(std::string_view key) const {
    return fmt::format("{}: tokenizer.ggml.{}", metadata_.source, key);
  }

  bool flag(std::string_view key, bool otherwise) const {
    return metadata_.find_bool(fmt::format("tokenizer.ggml.{}", key)).value_or(otherwise);
  }
  bool adds_eos() const { return flag("add_eos_token", false) && tokenizer_->eos().has_value(); }

  std::optional<TokenId> unknown() const {
    const auto id = metadata_.find_int("tokenizer.ggml.unknown_token_id");
    if (!id && model_ == "llama") return 0;
    if (!id || *id < 0 || *id >= std::ssize(*tokens_)) return std::nullopt;
    return static_cast<TokenId>(*id);
  }

  // As our own reader takes them: what is found in a text before the model sees it.
  Json added_tokens() const {
    Json list = Json::array();
    for (size_t i = 0; i < types_.size(); ++i) {
      const std::string& content = (*tokens_)[i];
      const bool special = tokenizer_->is_control(static_cast<TokenId>(i));
      if ((!special && types_[i] != kTypeUserDefined) || content.empty()) continue;
      // Behind the normalizer, which writes the low line for a space.
      const bool normalized = !special && content.find(kLowLine) != std::string::npos;
      list.push_back({{"id", i},
                      {"content", content},
                      {"single_word", false},
                      {"lstrip", false},
                      {"rstrip", false},
                      {"normalized", normalized},
                      {"special", special}});
    }
    return list;
  }

  Json vocabulary() const {
    Json json = Json::object();
    for (size_t i = 0; i < tokens_->size(); ++i) {
      const auto [place, is_new] = json.emplace((*tokens_)[i], i);
      if (is_new) continue;
      throw_error(ErrorKind::kInvalidInput, "{}[{}] and [{}] are both {}: tokenizer.json has one id for each",
                  where("tokens"), place->get<size_t>(), i, quote_text((*tokens_)[i]));
    }
    return json;
  }

  void fill_byte_level(Json& json) const {
    const std::string* named = metadata_.find_string("tokenizer.ggml.pre");
    auto [pre, flags] =
        tokenization::gguf_pre_tokenizer_json(named == nullptr ? "default" : *named, where("pre"));
    json["pre_tokenizer"] = std::move(pre);
    json["model"]["ignore_merges"] = (flags & tokenization::GgufPreTokenizer::kIgnoreMerges) != 0;
    const Json byte_level = {
        {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", false}};
    json["post_processor"] = byte_level;
    json["decoder"] = {
        {"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}};
    const std::vector<std::string>* merges = metadata_.find_strings("tokenizer.ggml.merges");
    if (merges == nullptr)
      throw_error(ErrorKind::kUnsupported, "{} is missing: tokenizer.json needs it", where("merges"));
    Json list = Json::array();
    for (const std::string& merge : *merges) {
      const size_t space = merge.find(' ', 1);
      list.push_back({merge.substr(0, space), merge.substr(space + 1)});
    }
    json["model"]["merges"] = std::move(list);
  }

  // SentencePiece joins the neighbours whose union has the highest score: as merges, all pairs of pieces
  // whose union is a piece, in the order of its score.
  Json merges_by_score() const {
    const auto scores = metadata_.find_doubles("tokenizer.ggml.scores");
    std::unordered_map<std::string_view, size_t> ids;
    for (size_t i = 0; i < tokens_->size(); ++i)
      if (types_[i] == 1 || types_[i] == kTypeUserDefined || types_[i] == 5) ids.emplace((*tokens_)[i], i);
    struct Merge {
      double score;
      size_t whole, left, right;
    };
    std::vector<Merge> merges;
    for (size_t i = 0; i < tokens_->size(); ++i) {
      if (types_[i] != 1) continue;
      const std::string_view piece = (*tokens_)[i];
      for (size_t cut = 1; cut < piece.size(); ++cut) {
        if ((static_cast<unsigned char>(piece[cut]) & 0xC0) == 0x80) continue;  // inside a character
        const auto left = ids.find(piece.substr(0, cut)), right = ids.find(piece.substr(cut));
        if (left == ids.end() || right == ids.end()) continue;
        merges.push_back({scores ? (*scores)[i] : 0.0, i, left->second, right->second});
      }
    }
    std::ranges::stable_sort(merges, [](const Merge& a, const Merge& b) {
      return a.score != b.score ? a.score > b.score : a.whole < b.whole;
    });
    Json list = Json::array();
    for (const Merge& merge : merges) list.push_back({(*tokens_)[merge.left], (*tokens_)[merge.right]});
    return list;
  }

  void fill_sentencepiece(Json& json) const {
    const bool prefix = flag("add_space_prefix", true);
    const Json spaces = {
        {"type", "Replace"}, {"pattern", Json::object({{"String", " "}})}, {"content", kLowLine}};
    Json decoders = {
        Json{{"type", "Replace"}, {"pattern", Json::object({{"String", kLowLine}})}, {"content", " "}},
        Json::object({{"type", "ByteFallback"}}), Json::object({{"type", "Fuse"}})};
    json["normalizer"] = spaces;
    if (prefix) {
      json["normalizer"] = {{"type", "Sequence"},
                            {"normalizers", {{{"type", "Prepend"}, {"prepend", kLowLine}}, spaces}}};
      decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
    }
    json["decoder"] = {{"type", "Sequence"}, {"decoders", decoders}};
    Json& model = json["model"];
    model["byte_fallback"] = true;
    model["fuse_unk"] = true;
    if (const auto id = unknown()) model["unk_token"] = (*tokens_)[static_cast<size_t>(*id)];
    model["merges"] = merges_by_score();
  }

  // Tokens before and after every text.
  void frame(Json& json) const {
    std::vector<TokenId> before, after;
    if (tokenizer_->adds_bos() && tokenizer_->bos()) before.push_back(*tokenizer_->bos());
    if (adds_eos()) after.push_back(*tokenizer_->eos());
    if (before.empty() && after.empty()) return;
    Json single = Json::array(), pair = Json::array(), special = Json::object();
    const auto token = [&](TokenId id, int type, Json& list) {
      const std::string& name = (*tokens_)[static_cast<size_t>(id)];
      list.push_back(Json::object({{"SpecialToken", {{"id", name}, {"type_id", type}}}}));
      special[name] = {
          {"id", name}, {"ids", Json::array({static_cast<uint64_t>(id)})}, {"tokens", Json::array({name})}};
    };
    const auto text = [&](const char* name, int type, Json& list) {
      for (const TokenId id : before) token(id, type, list);
      list.push_back(Json::object({{"Sequence", {{"id", name}, {"type_id", type}}}}));
      for (const TokenId id : after) token(id, type, list);
    };
    text("A", 0, single);
    text("A", 0, pair);
    text("B", 1, pair);
    json["post_processor"] = {
        {"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", special}};
  }

  const GgufMetadata& metadata_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::string model_;
  const std::vector<std::string>* tokens_;
  std::vector<int64_t> types_;
};

}  // namespace

Json tokenizer_json_of(const GgufMetadata& metadata) { return TokenizerExporter(metadata).tokenizer_json(); }

Json tokenizer_config_of(const GgufMetadata& metadata, int64_t context) {
  return TokenizerExporter(metadata).tokenizer_config(context);
}

Json generation_config_of(const GgufMetadata& metadata) {
  return TokenizerExporter(metadata).generation_config();
}

}  // namespace qiao
