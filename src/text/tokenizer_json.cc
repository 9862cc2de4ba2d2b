// tokenizer.json (and tokenizer_config.json) to a tokenizer.
#include <algorithm>

#include "base/error.h"
#include "base/quote.h"
#include "text/bpe_model.h"
#include "text/json_fields.h"
#include "text/pipeline_tokenizer.h"
#include "text/unigram_model.h"
#include "text/word_level_model.h"
#include "text/wordpiece_model.h"

namespace qiao {
namespace tokenization {
namespace {

constexpr size_t kMaxMerges = size_t{1} << 24;

// Ids of a map may have gaps, but not so many that a small file takes much memory.
int64_t highest_id(size_t entries) { return static_cast<int64_t>(entries) * 2 + 100'000; }

void set_token(Vocabulary& vocabulary, int64_t id, std::string_view spelling, size_t entries,
               std::string_view where) {
  if (id < 0 || id > highest_id(entries)) {
    throw_error(ErrorKind::kInvalidInput, "{}: id {} does not fit a vocabulary of {} tokens", where, id,
                entries);
  }
  vocabulary.set(id, spelling, where);
}

void read_vocabulary_map(const Json& model, size_t added, Vocabulary& vocabulary, std::string_view where) {
  const auto it = model.find("vocab");
  if (it == model.end() || !it->is_object()) {
    throw_error(ErrorKind::kInvalidInput, "{}.vocab: expected an object of token: id", where);
  }
  size_t bytes = 0;
  for (const auto& [token, id] : it->items()) bytes += token.size();
  vocabulary.reserve(it->size() + added, bytes + added * 16);
  for (const auto& [token, id] : it->items()) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > uint64_t{INT32_MAX}) {
      throw_error(ErrorKind::kInvalidInput, "{}.vocab: the id of {} is not a token id", where,
                  quote_text(token));
    }
    if (vocabulary.has(id.get<TokenId>())) {
      throw_error(ErrorKind::kInvalidInput, "{}.vocab: {} and {} share id {}", where,
                  quote_text(vocabulary.spelling(id.get<TokenId>())), quote_text(token), id.get<TokenId>());
    }
    set_token(vocabulary, id.get<int64_t>(), token, it->size() + added, where);
  }
}

TokenId unknown_token(const Json& model, const Vocabulary& vocabulary, std::string_view fallback,
                      bool required, std::string_view where) {
  const std::string name = string_field(model, "unk_token", fallback, where);
  if (name.empty()) return -1;
  const TokenId id = vocabulary.find(name);
  if (id < 0 && required) {
    throw_error(ErrorKind::kInvalidInput, "{}.unk_token: {} is not in the vocabulary", where,
                quote_text(name));
  }
  return id;
}

std::unique_ptr<TokenModel> parse_bpe(const Json& model, std::shared_ptr<const Vocabulary> vocabulary,
                                      std::vector<bool> matched, std::string_view where) {
  BpeOptions options;
  options.unknown = unknown_token(model, *vocabulary, "", true, where);
  options.fuse_unknown = bool_field(model, "fuse_unk", false, where);
  options.byte_fallback = bool_field(model, "byte_fallback", false, where);
  options.ignore_merges = bool_field(model, "ignore_merges", false, where);
  options.continuing_prefix = string_field(model, "continuing_subword_prefix", "", where);
  options.word_suffix = string_field(model, "end_of_word_suffix", "", where);
  const Json& list = required_array(model, "merges", where);
  if (list.size() > kMaxMerges) throw_error(ErrorKind::kTooLarge, "{}.merges: {} merges", where, list.size());
  std::vector<BpeModel::MergeText> merges;
  merges.reserve(list.size());
  for (size_t i = 0; i < list.size(); ++i) {
    const Json& merge = list[i];
    if (merge.is_string()) {
      const std::string_view text = merge.get_ref<const std::string&>();
      const size_t space = text.find(' ');
      if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos) {
        throw_error(ErrorKind::kInvalidInput, "{}.merges: merge {}: expected two tokens with a space between",
                    where, i);
      }
      merges.emplace_back(text.substr(0, space), text.substr(space + 1));
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      merges.emplace_back(merge[0].get_ref<const std::string&>(), merge[1].get_ref<const std::string&>());
    } else {
      throw_error(ErrorKind::kInvalidInput, "{}.merges: merge {}: expected two tokens", where, i);
    }
  }
  return std::make_unique<BpeModel>(std::move(vocabulary), merges, std::move(matched), std::move(options),
                                    true, where);
}

// Pairs [token, score]; gives the scores by id.
std::vector<double> read_unigram_vocabulary(const Json& model, size_t added, Vocabulary& vocabulary,
                                            std::string_view where) {
  const Json& list = required_array(model, "vocab", where);
  std::vector<double> scores;
  scores.reserve(list.size() + added);
  vocabulary.reserve(list.size() + added, (list.size() + added) * 8);
  for (size_t i = 0; i < list.size(); ++i) {
    if (!list[i].is_array() || list[i].size() != 2 || !list[i][0].is_string() || !list[i][1].is_number()) {
      throw_error(ErrorKind::kInvalidInput, "{}.vocab: entry {}: expected [token, score]", where, i);
    }
    vocabulary.set(static_cast<int64_t>(i), list[i][0].get_ref<const std::string&>(), where);
    scores.push_back(list[i][1].get<double>());
  }
  return scores;
}

void read_added_tokens(const Json& json, Vocabulary& vocabulary, PipelineParts& parts,
                       std::string_view source) {
  const auto it = json.find("added_tokens");
  if (it == json.end() || it->is_null()) return;
  const std::string where = fmt::format("{}: added_tokens", source);
  if (!it->is_array()) throw_error(ErrorKind::kInvalidInput, "{}: expected an array", where);
  const size_t entries = static_cast<size_t>(vocabulary.size()) + it->size();
  for (const Json& entry : *it) {
    if (!entry.is_object()) throw_error(ErrorKind::kInvalidInput, "{}: expected objects", where);
    AddedToken token;
    token.content = required_string(entry, "content", where);
    const int64_t id = int_field(entry, "id", -1, where);
    token.special = bool_field(entry, "special", false, where);
    token.normalized = bool_field(entry, "normalized", !token.special, where);
    token.single_word = bool_field(entry, "single_word", false, where);
    token.strip_left = bool_field(entry, "lstrip", false, where);
    token.strip_right = bool_field(entry, "rstrip", false, where);
    if (token.content.empty()) continue;
    // A token of the model keeps the model's id, as in the tokenizers library.
    const TokenId known = vocabulary.find(token.content);
    token.id = known >= 0 ? known : static_cast<TokenId>(std::clamp<int64_t>(id, INT32_MIN, INT32_MAX));
    if (known < 0) set_token(vocabulary, id, token.content, entries, where);
    parts.added.push_back(std::move(token));
  }
}

// A token of tokenizer_config.json: "<s>" or {"content": "<s>", …}.
std::optional<TokenId> config_token(const Json& config, const char* key, const Vocabulary& vocabulary) {
  if (!config.is_object()) return std::nullopt;
  const auto it = config.find(key);
  if (it == config.end()) return std::nullopt;
  const Json* content = &*it;
  if (it->is_object()) {
    const auto inner = it->find("content");
    if (inner == it->end()) return std::nullopt;
    content = &*inner;
  }
  if (!content->is_string()) return std::nullopt;
  const TokenId id = vocabulary.find(content->get_ref<const std::string&>());
  return id < 0 ? std::nullopt : std::optional<TokenId>(id);
}

}  // namespace
}  // namespace tokenization

std::unique_ptr<Tokenizer> Tokenizer::from_json(const Json& json, const Json& config,
                                                std::string_view source) {
  using namespace tokenization;
  if (!json.is_object())
    throw_error(ErrorKind::kInvalidInput, "{}: tokenizer.json: expected an object", source);
  const auto model_it = json.find("model");
  if (model_it == json.end() || !model_it->is_object()) {
    throw_error(ErrorKind::kInvalidInput, "{}: model: expected an object", source);
  }
  const Json& model = *model_it;
  const std::string where = fmt::format("{}: model", source);
  const auto part = [&](const char* key) -> const Json& {
    static const Json kNull;
    const auto it = json.find(key);
    return it == json.end() ? kNull : *it;
  };
  // Old files leave the type out: merges mean BPE, a list of scores unigram.
  const auto vocab = model.find("vocab");
  const bool listed = vocab != model.end() && vocab->is_array();
  const std::string type = string_field(model, "type",
                                        model.contains("merges") ? "BPE"
                                        : listed                 ? "Unigram"
                                                                 : "WordPiece",
                                        where);
  const size_t added = part("added_tokens").is_array() ? part("added_tokens").size() : 0;

  PipelineParts parts;
  parts.source = source;
  auto vocabulary = std::make_shared<Vocabulary>();
  std::vector<double> scores;
  if (type == "Unigram") {
    scores = read_unigram_vocabulary(model, added, *vocabulary, where);
  } else if (type == "BPE" || type == "WordPiece" || type == "WordLevel") {
    read_vocabulary_map(model, added, *vocabulary, where);
  } else {
    throw_error(ErrorKind::kUnsupported, "{}: {} is not supported", where, quote_text(type));
  }
  // Only the model's own tokens match inside text; added tokens are found before.
  const int64_t own = vocabulary->size();
  std::vector<bool> matched(static_cast<size_t>(own));
  for (int64_t i = 0; i < own; ++i)
    matched[static_cast<size_t>(i)] = vocabulary->has(static_cast<TokenId>(i));
  read_added_tokens(json, *vocabulary, parts, source);
  const auto total = static_cast<size_t>(vocabulary->size());
  matched.resize(total);
  scores.resize(total);

  parts.vocabulary = vocabulary;
  if (type == "BPE") {
    parts.model = parse_bpe(model, vocabulary, matched, where);
    parts.kind = "BPE";
  } else if (type == "Unigram") {
    const int64_t unknown = int_field(model, "unk_id", -1, where);
    if (unknown < -1 || unknown >= own) {
      throw_error(ErrorKind::kInvalidInput, "{}.unk_id: {} is not a token id", where, unknown);
    }
    std::vector<double> own_scores(scores.begin(), scores.begin() + own);
    own_scores.resize(total, own == 0 ? 0 : *std::max_element(own_scores.begin(), own_scores.end()));
    parts.model = std::make_unique<UnigramModel>(
        vocabulary, std::move(own_scores), matched, static_cast<TokenId>(unknown),
        bool_field(model, "byte_fallback", false, where), UnigramModel::Sums::kDouble, where);
    parts.kind = "unigram";
  } else if (type == "WordLevel") {
    const TokenId unknown = unknown_token(model, *vocabulary, "<unk>", false, where);
    parts.model = std::make_unique<WordLevelModel>(vocabulary, matched, unknown, where);
    parts.kind = "word level";
  } else {
    WordPieceModel::Options options;
    options.unknown = unknown_token(model, *vocabulary, "[UNK]", false, where);
    options.continuing_prefix = string_field(model, "continuing_subword_prefix", "##", where);
    const int64_t most = int_field(model, "max_input_chars_per_word", 100, where);
    if (most < 0) throw_error(ErrorKind::kInvalidInput, "{}.max_input_chars_per_word: {}", where, most);
    options.max_word_characters = static_cast<size_t>(most);
    parts.model = std::make_unique<WordPieceModel>(vocabulary, matched, std::move(options), where);
    parts.kind = "WordPiece";
  }
  parts.normalizer = parse_normalizer(part("normalizer"), fmt::format("{}: normalizer", source));
  parts.pre_tokenizer = parse_pre_tokenizer(part("pre_tokenizer"), fmt::format("{}: pre_tokenizer", source));
  parts.decoder = parse_decoder(part("decoder"), fmt::format("{}: decoder", source));
  parts.frame = parse_post_processor(part("post_processor"), vocabulary->size(),
                                     fmt::format("{}: post_processor", source));
  if (parts.pre_tokenizer != nullptr && parts.pre_tokenizer->writes_byte_alphabet())
    parts.kind = "byte-level BPE";

  parts.control.resize(total);
  parts.bos = config_token(config, "bos_token", *vocabulary);
  parts.eos = config_token(config, "eos_token", *vocabulary);
  parts.pad = config_token(config, "pad_token", *vocabulary);
  if (parts.eos.has_value()) parts.end_of_generation.push_back(*parts.eos);
  for (const AddedToken& token : parts.added) {
    parts.control[static_cast<size_t>(token.id)] = token.special;
    if (token.special && is_end_of_generation_name(token.content))
      parts.end_of_generation.push_back(token.id);
  }
  std::sort(parts.end_of_generation.begin(), parts.end_of_generation.end());
  const auto last = std::unique(parts.end_of_generation.begin(), parts.end_of_generation.end());
  parts.end_of_generation.erase(last, parts.end_of_generation.end());
  return std::make_unique<PipelineTokenizer>(std::move(parts));
}

}  // namespace qiao
