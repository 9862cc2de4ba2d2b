// GGUF metadata (tokenizer.ggml.*) to a tokenizer.
#include <algorithm>
#include <cctype>
#include <set>

#include "base/error.h"
#include "base/quote.h"
#include "formats/model_files.h"
#include "text/bpe_model.h"
#include "text/gguf_pre_tokenizers.h"
#include "text/pipeline_tokenizer.h"
#include "text/sentencepiece_model.h"
#include "text/unigram_model.h"
#include "text/wordpiece_model.h"

namespace qiao {
namespace tokenization {
namespace {

// tokenizer.ggml.token_type
enum TokenType : int64_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

// What the metadata says, checked; each kind of model then takes its part.
class GgufReader {
 public:
  explicit GgufReader(const GgufMetadata& metadata) : metadata_(metadata) {
    parts_.source = metadata.source;
    const std::string* model = metadata_.find_string("tokenizer.ggml.model");
    if (model == nullptr) fail("model", "is missing: the file holds no vocabulary");
    model_ = *model;
  }

  std::unique_ptr<Tokenizer> read() {
    if (model_ == "none" || model_ == "no_vocab") {
      throw_error(ErrorKind::kUnsupported, "{}: the file holds no vocabulary", metadata_.source);
    }
    const bool bpe = model_ == "gpt2" || model_ == "gemma4" || model_ == "whitespace";
    if (!bpe && model_ != "llama" && model_ != "t5" && model_ != "bert") {
      throw_error(ErrorKind::kUnsupported,
                  "{}: tokenizer.ggml.model {} is not supported (known: bert, gemma4, gpt2, llama, t5, "
                  "whitespace)",
                  metadata_.source, quote_text(model_));
    }
    read_tokens();
    read_special_ids();
    promote_turn_ends();
    bool add_bos = false;
    bool add_eos = false;
    if (bpe) {
      add_bos = build_bpe();
    } else if (model_ == "llama") {
      build_sentencepiece();
      add_bos = true;
    } else if (model_ == "t5") {
      build_unigram();
      add_eos = true;
    } else {
      build_wordpiece();
    }
    build_frame(add_bos, add_eos);
    collect_added_tokens();
    collect_end_of_generation();
    parts_.control.resize(types_.size());
    for (size_t i = 0; i < types_.size(); ++i)
      parts_.control[i] = types_[i] == kControl || types_[i] == kUnknown;
    return std::make_unique<PipelineTokenizer>(std::move(parts_));
  }

 private:
  [[noreturn]] void fail(std::string_view key, std::string_view what) const {
    throw_error(ErrorKind::kInvalidInput, "{}: tokenizer.ggml.{} {}", metadata_.source, key, what);
  }
  std::string_view spelling(size_t id) const { return vocabulary_->spelling(static_cast<TokenId>(id)); }
  bool flag(const char* key, bool fallback) const {
    return metadata_.find_bool(std::string("tokenizer.ggml.") + key).value_or(fallback);
  }

  void read_tokens() {
    const std::vector<std::string>* tokens = metadata_.find_strings("tokenizer.ggml.tokens");
    if (tokens == nullptr || tokens->empty()) fail("tokens", "is missing or empty");
    size_t bytes = 0;
    for (const std::string& token : *tokens) bytes += token.size();
    auto vocabulary = std::make_shared<Vocabulary>();
    vocabulary->reserve(tokens->size(), bytes);
    for (size_t i = 0; i < tokens->size(); ++i) {
      if (!utf8_valid((*tokens)[i])) fail("tokens", fmt::format("[{}] is not UTF-8", i));
      vocabulary->set(static_cast<int64_t>(i), (*tokens)[i], metadata_.source);
    }
    parts_.vocabulary = vocabulary_ = vocabulary;
    types_.assign(tokens->size(), kNormal);
    if (const auto types = metadata_.find_ints("tokenizer.ggml.token_type")) {
      if (types->size() < types_.size()) {
        fail("token_type", fmt::format("has {} entries for {} tokens", types->size(), types_.size()));
      }
      types_.assign(types->begin(), types->begin() + static_cast<ptrdiff_t>(types_.size()));
    }
    scores_.assign(tokens->size(), 0.0);
    if (const auto scores = metadata_.find_doubles("tokenizer.ggml.scores")) {
      if (scores->size() < scores_.size()) {
        fail("scores", fmt::format("has {} entries for {} tokens", scores->size(), scores_.size()));
      }
      scores_.assign(scores->begin(), scores->begin() + static_cast<ptrdiff_t>(scores_.size()));
    }
  }

  // The id under `key`; `fallback` where it is absent and in range. An id out of range is an error.
  std::optional<TokenId> special_id(const char* key, int64_t fallback = -1) const {
    const auto id = metadata_.find_int(std::string("tokenizer.ggml.") + key);
    const int64_t size = vocabulary_->size();
    if (!id.has_value()) {
      return fallback >= 0 && fallback < size ? std::optional<TokenId>(static_cast<TokenId>(fallback))
                                              : std::nullopt;
    }
    if (*id == -1 || *id == INT64_C(0xFFFFFFFF)) return std::nullopt;  // how converters write "none"
    if (*id < 0 || *id >= size) fail(key, fmt::format("is {}, out of a vocabulary of {}", *id, size));
    return static_cast<TokenId>(*id);
  }

  // Published files name one behind the vocabulary where padding was added for training only: there is none.
  std::optional<TokenId> padding_id(int64_t fallback) const {
    const auto id = metadata_.find_int("tokenizer.ggml.padding_token_id");
    if (id.has_value() && *id >= vocabulary_->size()) return std::nullopt;
    return special_id("padding_token_id", fallback);
  }

  void read_special_ids() {
    const bool llama = model_ == "llama";
    const bool t5 = model_ == "t5";
    const bool bert = model_ == "bert";
    parts_.bos = special_id("bos_token_id", llama ? 1 : -1);
    parts_.eos = special_id("eos_token_id", llama ? 2 : t5 ? 1 : -1);
    parts_.pad = padding_id(t5 || bert ? 0 : -1);
    unknown_ = special_id("unknown_token_id", llama ? 0 : t5 ? 2 : bert ? 100 : -1);
    separator_ = special_id("seperator_token_id", bert ? 102 : -1);
    if (bert) {
      const auto cls = special_id("cls_token_id", 101);
      if (cls.has_value()) parts_.bos = cls;
    }
    for (const char* key :
         {"eot_token_id", "eom_token_id", "fim_pad_token_id", "fim_rep_token_id", "fim_sep_token_id"}) {
      if (const auto id = special_id(key)) parts_.end_of_generation.push_back(*id);
    }
    if (parts_.eos.has_value()) parts_.end_of_generation.push_back(*parts_.eos);
  }

  // Some converters wrote the tokens that end a turn as ordinary ones; as such they would never be found in a
  // prompt.
  void promote_turn_ends() {
    for (size_t i = 0; i < types_.size(); ++i) {
      const std::string_view name = spelling(i);
      if (name != "</s>" && name != "<eos>" && is_end_of_generation_name(name)) types_[i] = kControl;
      // gpt-oss: these frame the channels that a reader of the answer has to see.
      if (name == "<|channel|>" || name == "<|message|>" || name == "<|start|>" || name == "<|constrain|>") {
        types_[i] = kUserDefined;
      }
    }
  }

  std::vector<BpeModel::MergeText> read_merges() const {
    const std::vector<std::string>* list = metadata_.find_strings("tokenizer.ggml.merges");
    std::vector<BpeModel::MergeText> merges;
    if (list == nullptr) return merges;
    merges.reserve(list->size());
    for (size_t i = 0; i < list->size(); ++i) {
      const std::string_view merge = (*list)[i];
      const size_t space = merge.find(' ', 1);
      if (space == std::string_view::npos)
        fail("merges", fmt::format("[{}]: expected two tokens with a space between", i));
      merges.emplace_back(merge.substr(0, space), merge.substr(space + 1));
    }
    return merges;
  }

  bool build_bpe() {
    const std::string* named = metadata_.find_string("tokenizer.ggml.pre");
    const std::string name = model_ == "gemma4" ? "gemma4" : named == nullptr ? "default" : *named;
    GgufPreTokenizer pre = make_gguf_pre_tokenizer(name, metadata_.source + ": tokenizer.ggml.pre");
    const bool escaped = (pre.flags & GgufPreTokenizer::kEscapedSpaces) != 0;
    const bool plain = escaped || (pre.flags & GgufPreTokenizer::kWhitespace) != 0;
    if (escaped) parts_.normalizer = make_replace(" ", std::string(kSpace));
    if ((pre.flags & GgufPreTokenizer::kWhitespace) != 0 && flag("normalizer.lowercase", false)) {
      parts_.normalizer = parse_normalizer({{"type", "Lowercase"}}, metadata_.source);
    }
    parts_.pre_tokenizer = std::move(pre.splitter);
    parts_.decoder = plain ? make_sentencepiece_decoder(false) : make_byte_level_decoder();
    parts_.kind = fmt::format("{} ({})", plain ? "BPE" : "byte-level BPE", name);
    const bool merges_listed = metadata_.find_strings("tokenizer.ggml.merges") != nullptr;
    if (!merges_listed && name != "kimi-k2") fail("merges", "is missing");
    if (merges_listed) {
      BpeOptions options;
      options.ignore_merges = (pre.flags & GgufPreTokenizer::kIgnoreMerges) != 0;
      options.newline_runs_whole = escaped;
      options.byte_fallback = plain;
      std::vector<bool> matched(types_.size());
      for (size_t i = 0; i < matched.size(); ++i) matched[i] = types_[i] != kControl && types_[i] != kUnknown;
      parts_.model = std::make_unique<BpeModel>(vocabulary_, read_merges(), std::move(matched), options,
                                                false, metadata_.source);
    } else {
      // Kimi K2's merges are its vocabulary: the neighbours that make the token of the lowest id go first.
      std::vector<float> scores(types_.size());
      for (size_t i = 0; i < scores.size(); ++i) scores[i] = -static_cast<float>(i);
      parts_.model = std::make_unique<SentencePieceModel>(vocabulary_, std::move(scores), piece_kinds(), -1);
    }
    return (pre.flags & GgufPreTokenizer::kAddBos) != 0 || name == "gemma4";
  }

  std::vector<PieceKind> piece_kinds() const {
    std::vector<PieceKind> kinds(types_.size(), PieceKind::kNotMatched);
    for (size_t i = 0; i < types_.size(); ++i) {
      if (spelling(i).empty() || byte_of_token(spelling(i)) >= 0) continue;
      if (types_[i] == kNormal) kinds[i] = PieceKind::kNormal;
      if (types_[i] == kUserDefined) kinds[i] = PieceKind::kUserDefined;
      if (types_[i] == kUnused) kinds[i] = PieceKind::kUnused;
    }
    return kinds;
  }

  void build_sentencepiece() {
    const bool prefix = flag("add_space_prefix", true);
    std::vector<float> scores(scores_.begin(), scores_.end());
    auto model = std::make_unique<SentencePieceModel>(vocabulary_, std::move(scores), piece_kinds(),
                                                      unknown_.value_or(-1));
    parts_.normalizer = parse_normalizer(
        {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kSpace}}, metadata_.source);
    if (prefix) {
      parts_.normalizer =
          parse_normalizer({{"type", "Sequence"},
                            {"normalizers",
                             {{{"type", "Prepend"}, {"prepend", kSpace}},
                              {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kSpace}}}}},
                           metadata_.source);
    }
    if (model->words_are_independent()) parts_.pre_tokenizer = make_word_boundaries();
    parts_.model = std::move(model);
    parts_.decoder = make_sentencepiece_decoder(prefix);
    parts_.kind = "SentencePiece BPE (llama)";
  }

  void build_unigram() {
    SentencePieceOptions options;
    options.add_space_prefix = flag("add_space_prefix", true);
    options.remove_extra_spaces = flag("remove_extra_whitespaces", true);
    options.escape_spaces = flag("escape_whitespaces", true);
    options.space_as_suffix = flag("treat_whitespace_as_suffix", false);
    if (const auto map = metadata_.find_ints("tokenizer.ggml.precompiled_charsmap")) {
      std::string blob;
      blob.reserve(map->size());
      for (const int64_t byte : *map) blob.push_back(static_cast<char>(byte));
      if (!blob.empty()) {
        options.charsmap = std::make_unique<Charsmap>(blob, metadata_.source + ": tokenizer.ggml");
      }
    }
    std::vector<bool> matched(types_.size());
    for (size_t i = 0; i < types_.size(); ++i) {
      matched[i] = types_[i] == kNormal || types_[i] == kUserDefined || types_[i] == kUnused;
      if (types_[i] == kUserDefined) {
        scores_[i] = 0;
        options.user_defined.insert(spelling(i), static_cast<TokenId>(i));
      }
    }
    const bool prefix = options.add_space_prefix;
    parts_.normalizer = make_sentencepiece_normalizer(std::move(options));
    parts_.model = std::make_unique<UnigramModel>(vocabulary_, scores_, matched, unknown_.value_or(-1),
                                                  ByteTokens(*vocabulary_).complete(),
                                                  UnigramModel::Sums::kFloat, metadata_.source);
    parts_.decoder = make_sentencepiece_decoder(prefix);
    parts_.kind = "unigram (t5)";
  }

  void build_wordpiece() {
    BertOptions bert;
    bert.lowercase = flag("normalizer.lowercase", true);
    bert.strip_accents = flag("normalizer.strip_accents", bert.lowercase);
    parts_.normalizer = make_bert_normalizer(bert);
    parts_.pre_tokenizer = make_bert_pre_tokenizer();
    WordPieceModel::Options options;
    options.unknown = unknown_.value_or(-1);
    options.phantom_space = true;
    std::vector<bool> matched(types_.size());
    for (size_t i = 0; i < types_.size(); ++i) matched[i] = types_[i] == kNormal || types_[i] == kUserDefined;
    parts_.model = std::make_unique<WordPieceModel>(vocabulary_, matched, options, metadata_.source);
    parts_.decoder = make_phantom_space_decoder();
    parts_.kind = "WordPiece (bert)";
  }

  void build_frame(bool add_bos, bool add_eos) {
    if (model_ == "bert") {
      if (parts_.bos.has_value()) parts_.frame.before = {*parts_.bos};
      if (separator_.has_value()) parts_.frame.after = {*separator_};
      return;
    }
    // Files of Gemma 4 that say otherwise are known to be wrong.
    if (flag("add_bos_token", add_bos) || model_ == "gemma4") {
      if (parts_.bos.has_value()) parts_.frame.before = {*parts_.bos};
    }
    if (flag("add_eos_token", add_eos) && parts_.eos.has_value()) parts_.frame.after = {*parts_.eos};
  }

  bool is_phi3() const {
    const std::string* name = metadata_.find_string("general.name");
    if (name == nullptr) return false;
    std::string lower(*name);
    for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    return lower.find("phi-3") != std::string::npos || lower.find("phi3") != std::string::npos;
  }

  void collect_added_tokens() {
    const bool strips =
        is_phi3();  // its tokens take the white space behind them; GGUF has no place to say so
    for (size_t i = 0; i < types_.size(); ++i) {
      const bool special = types_[i] == kControl || types_[i] == kUnknown;
      if ((!special && types_[i] != kUserDefined) || spelling(i).empty()) continue;
      AddedToken token;
      token.id = static_cast<TokenId>(i);
      token.content = spelling(i);
      token.special = special;
      if (!special && token.content.find(kSpace) != std::string::npos) {
        if (model_ == "llama" || model_ == "t5")
          continue;  // the model itself finds it, behind the normalizer
        token.normalized = true;
      }
      token.strip_right =
          strips && token.content != "<unk>" && token.content != "<s>" && token.content != "<|endoftext|>";
      parts_.added.push_back(std::move(token));
    }
  }

  void collect_end_of_generation() {
    std::set<TokenId> ends(parts_.end_of_generation.begin(), parts_.end_of_generation.end());
    std::set<std::string_view> names;
    for (size_t i = 0; i < types_.size(); ++i) {
      if (types_[i] != kControl && types_[i] != kUserDefined) continue;
      const std::string_view name = spelling(i);
      const bool repository = name == "<|fim_pad|>" || name == "<fim_pad>" || name == "<|fim_repo|>" ||
                              name == "<|repo_name|>" || name == "<|file_sep|>" || name == "<reponame>";
      if (is_end_of_generation_name(name)) names.insert(name);
      if (is_end_of_generation_name(name) || repository) ends.insert(static_cast<TokenId>(i));
    }
    // Where <|return|> or <|flush|> end the answer, <|end|> only ends one of its messages.
    const bool calls = names.contains("<|call|>") || names.contains("<|calls|>");
    if (calls && (names.contains("<|return|>") || names.contains("<|flush|>"))) drop(ends, "<|end|>");
    // Gemma 4's </s> is text.
    if (names.contains("<|tool_response>")) drop(ends, "</s>");
    parts_.end_of_generation.assign(ends.begin(), ends.end());
  }

  void drop(std::set<TokenId>& ends, std::string_view name) const {
    const TokenId id = vocabulary_->find(name);
    if (id >= 0 && id != parts_.eos) ends.erase(id);
  }

  const GgufMetadata& metadata_;
  std::string model_;
  std::shared_ptr<const Vocabulary> vocabulary_;
  std::vector<int64_t> types_;
  std::vector<double> scores_;
  std::optional<TokenId> unknown_;
  std::optional<TokenId> separator_;
  PipelineParts parts_;
};

}  // namespace
}  // namespace tokenization

std::unique_ptr<Tokenizer> Tokenizer::from_gguf(const GgufMetadata& metadata) {
  return tokenization::GgufReader(metadata).read();
}

std::unique_ptr<Tokenizer> Tokenizer::from_model(const ModelFiles& files) {
  if (files.kind() == ModelFiles::Kind::kGguf) return from_gguf(files.metadata());
  if (files.tokenizer_json().is_null()) {
    throw_error(ErrorKind::kNotFound, "{}: no tokenizer.json; a model needs one to read and write text",
                files.path().string());
  }
  const std::filesystem::path& path = files.path();
  const bool alone = path.extension() == ".json" && !std::filesystem::is_directory(path);
  return from_json(files.tokenizer_json(), files.tokenizer_config(),
                   (alone ? path : path / "tokenizer.json").string());
}

}  // namespace qiao
