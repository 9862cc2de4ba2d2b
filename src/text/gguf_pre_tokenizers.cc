#include "text/gguf_pre_tokenizers.h"

#include <algorithm>
#include <optional>

#include "base/error.h"
#include "base/quote.h"

namespace qiao::tokenization {
namespace {

// The patterns are those of the models' own tokenizer.json files, each step cutting what the step before
// left.
constexpr std::string_view kLlama3 =
    R"re((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\)re"
    R"re(r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)re";
constexpr std::string_view kQwen2 =
    R"re((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)re"
    R"re(|\s*[\r\n]+|\s+(?!\S)|\s+)re";
constexpr std::string_view kGpt4o =
    R"re([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t)re"
    R"re(|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\)re"
    R"re(p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\)re"
    R"re(r\n]+|\s+(?!\S)|\s+)re";
constexpr std::string_view kJais2 =
    R"re((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\)re"
    R"re(r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|)re"
    R"re(\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1})re";
constexpr std::string_view kMinicpm5Words =
    R"re((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n])re"
    R"re(*|\s*[\r\n]+|\s+(?!\S)|\s+)re";
constexpr std::string_view kDeepseekLlmWords =
    R"re(\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕ)re"
    R"re(Ἐ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳ)re"
    R"re(Ꙁ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+)re";
constexpr std::string_view kDeepseekV3Words =
    R"re([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?)re"
    R"re([\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)re";
constexpr std::string_view kSpark25Words =
    R"re([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?)re"
    R"re([\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+)re";
constexpr std::string_view kYoutuWords =
    R"re([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t)re"
    R"re(|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\)re"
    R"re(p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+)re"
    R"re(|\s+(?!\S)|\s+)re";
constexpr std::string_view kQwen35 =
    R"re((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p)re"
    R"re({N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)re";
constexpr std::string_view kUfakzeka =
    R"re([^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)re";
constexpr std::string_view kTekken =
    R"re([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p)re"
    R"re({L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L)re"
    R"re(}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)re";
constexpr std::string_view kBailingmoe =
    R"re('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[)re"
    R"re(\r\n]|\s+(?!\S)|\s+)re";
constexpr std::string_view kSeedCoder =
    R"re((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+)re"
    R"re(|\s*[\r\n]+|\s+(?!\S)|\s+)re";
constexpr std::string_view kKimiK2 =
    R"re([\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm)re"
    R"re(}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{L)re"
    R"re(t}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|)re"
    R"re('ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)re";
constexpr std::string_view kExaoneMoe =
    R"re((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?>(?:\p{L}\p{M}*+(?: \p{L}\p{M}*+)*+))re"
    R"re(++)|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+)re";
constexpr std::string_view kAfmoeWords =
    R"re([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|)re"
    R"re( ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)re";

constexpr std::string_view kDigitGroups;  // no pattern: groups of three numbers from the right

struct Entry {
  std::vector<std::string_view> names;
  std::vector<std::string_view> patterns;
  int flags;
};

const std::vector<Entry>& entries() {
  static const std::vector<Entry> table = {
      {{"default"},
       {R"re([\p{P}\$\+<=>\^~\|]+)re", kGpt2Pattern, R"re(\p{N}+)re", R"re([0-9][0-9][0-9])re"},
       0},
      {{"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
        "jina-v5-nano"},
       {kLlama3},
       GgufPreTokenizer::kIgnoreMerges | GgufPreTokenizer::kAddBos},
      {{"dbrx", "smaug-bpe", "chatglm-bpe"}, {kLlama3}, 0},
      {{"glm4", "glm5"}, {kLlama3}, GgufPreTokenizer::kIgnoreMerges},
      {{"jais-2"}, {kJais2}, 0},
      {{"minicpm5"}, {R"re(\p{N}{1,3})re", kMinicpm5Words}, GgufPreTokenizer::kIgnoreMerges},
      {{"deepseek-llm"},
       {R"re([\r\n])re", kDeepseekLlmWords, R"re(\s?[!-/:-~！-／：-～‘-‟　-。]+)re", R"re(\s+$)re",
        R"re([一-龥ࠀ-一가-퟿]+)re", R"re(\p{N}+)re"},
       0},
      {{"deepseek-coder"},
       {R"re([\r\n])re", R"re(\s?\p{L}+)re", R"re(\s?\p{P}+)re", R"re([一-龥ࠀ-一가-퟿]+)re",
        R"re(\p{N})re"},
       0},
      {{"deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"},
       {R"re(\p{N}{1,3})re", R"re([一-龥぀-ゟ゠-ヿ]+)re", kDeepseekV3Words},
       0},
      {{"spark2_5"},
       {R"re(\p{N}{1,3})re", R"re([一-龥぀-ゟ゠-ヿ]+)re", kSpark25Words, R"re(\p{N})re"},
       0},
      {{"youtu"},
       {R"re([가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+)re",
        kYoutuWords},
       GgufPreTokenizer::kIgnoreMerges},
      {{"starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"},
       {R"re(\p{N})re", kGpt2Pattern},
       0},
      {{"gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de", "a.x-4.0", "mellum",
        "modern-bert", "exaone4", "mpt", "olmo", "jais", "trillion", "granite-docling"},
       {kGpt2Pattern},
       0},
      {{"jina-v1-en", "jina-v2-code", "roberta-bpe"}, {kGpt2Pattern}, 0},
      {{"qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "stablelm2", "hunyuan", "solar-open", "megrez",
        "grok-2"},
       {kQwen2},
       0},
      {{"qwen35"}, {kQwen35}, 0},
      {{"ufakzeka"}, {kUfakzeka}, 0},
      {{"laguna"}, {R"re([^\n]+|[\n]+)re", kQwen2}, 0},
      {{"poro-chat", "bloom", "gpt3-finnish"}, {R"re( ?[^(\s|.,!?…。，、।۔،)]+)re"}, 0},
      {{"viking"}, {R"re( ?[^(\s|.,!?…。，、।۔،)]+)re", R"re(\p{N})re"}, 0},
      {{"tekken"}, {kTekken}, GgufPreTokenizer::kIgnoreMerges | GgufPreTokenizer::kAddBos},
      {{"chameleon"},
       {R"re(<sentinel:[0-9]+>)re", R"re((IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z)re", R"re(([\t\n]|    |  ))re",
        R"re(\p{N})re", R"re([\p{P}!-/:-@\[-`{-~])re", kGpt2Pattern},
       GgufPreTokenizer::kAddBos},
      {{"gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"}, {kGpt4o}, 0},
      {{"granite-embed-multi-97m"}, {kGpt4o}, GgufPreTokenizer::kIgnoreMerges},
      {{"tiny_aya", "cohere2moe"}, {R"re(\d{1,3}(?=(?:\d{3})*\b))re", kGpt4o}, 0},
      {{"superbpe"}, {R"re(\p{N}+)re", R"re((?=(\d{3})+(?!\d)))re"}, 0},
      {{"bailingmoe", "bailingmoe2", "llada-moe"}, {kBailingmoe}, 0},
      {{"seed-coder"}, {kSeedCoder}, 0},
      {{"kimi-k2"}, {kKimiK2}, 0},
      {{"exaone-moe"}, {kExaoneMoe}, 0},
      {{"afmoe"},
       {kDigitGroups,
        R"re([一-鿿㐀-䶿豈-﫿぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+)re",
        kAfmoeWords},
       0},
      {{"falcon"}, {}, 0},
      {{"gemma4", "granite-embed-multi-311m", "sarvam-moe"},
       {R"re([^\n]+|[\n]+)re"},
       GgufPreTokenizer::kEscapedSpaces},
      {{"whitespace"}, {R"re(\S+)re"}, GgufPreTokenizer::kWhitespace},
  };
  return table;
}

// Falcon cuts after the byte alphabet too, where "²" or "¾" may be a byte of another character.
Json falcon_json() {
  return {{"type", "Sequence"},
          {"pretokenizers",
           {{{"type", "Punctuation"}, {"behavior", "Contiguous"}},
            {{"type", "ByteLevel"}, {"add_prefix_space", false}},
            {{"type", "Digits"}, {"individual_digits", false}},
            {{"type", "Split"},
             {"pattern", Json::object({{"Regex", "[0-9][0-9][0-9]"}})},
             {"behavior", "Isolated"}}}}};
}

const Entry& find_entry(std::string_view name, std::string_view where) {
  for (const Entry& entry : entries())
    if (std::find(entry.names.begin(), entry.names.end(), name) != entry.names.end()) return entry;
  throw_error(ErrorKind::kUnsupported, "{}: {} is not a known pre-tokenizer (known: {})", where,
              quote_text(name), fmt::join(gguf_pre_tokenizer_names(), ", "));
}

}  // namespace

std::vector<std::string_view> gguf_pre_tokenizer_names() {
  std::vector<std::string_view> names;
  for (const Entry& entry : entries()) names.insert(names.end(), entry.names.begin(), entry.names.end());
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<std::string_view> gguf_pre_tokenizer_kinds() {
  std::vector<std::string_view> kinds;
  for (const Entry& entry : entries()) kinds.push_back(entry.names.front());
  return kinds;
}

GgufPreTokenizer make_gguf_pre_tokenizer(std::string_view name, std::string_view where) {
  if (name == "falcon") return {parse_pre_tokenizer(falcon_json(), where), 0};
  const Entry& entry = find_entry(name, where);
  const bool bytes = (entry.flags & (GgufPreTokenizer::kEscapedSpaces | GgufPreTokenizer::kWhitespace)) == 0;
  const bool words_only = (entry.flags & GgufPreTokenizer::kWhitespace) != 0;
  std::vector<std::unique_ptr<PreTokenizer>> steps;
  for (const std::string_view pattern : entry.patterns) {
    if (pattern == kDigitGroups) {
      steps.push_back(make_digit_groups(DigitRuns::kAllNumbers));
    } else {
      steps.push_back(make_regex_split(
          pattern, words_only ? SplitBehavior::kRemoved : SplitBehavior::kIsolated, words_only, where));
    }
  }
  if (bytes) steps.push_back(make_byte_level(false, false));
  return {make_sequence(std::move(steps)), entry.flags};
}

GgufPreTokenizerJson gguf_pre_tokenizer_json(std::string_view name, std::string_view where) {
  if (name == "falcon") return {falcon_json(), 0};
  const Entry& entry = find_entry(name, where);
  if ((entry.flags & (GgufPreTokenizer::kEscapedSpaces | GgufPreTokenizer::kWhitespace)) != 0 ||
      std::find(entry.patterns.begin(), entry.patterns.end(), kDigitGroups) != entry.patterns.end()) {
    throw_error(ErrorKind::kUnsupported, "{}: {}: tokenizer.json has no pre-tokenizer for it that is known",
                where, quote_text(name));
  }
  Json steps = Json::array();
  for (const std::string_view pattern : entry.patterns) {
    steps.push_back({{"type", "Split"},
                     {"pattern", Json::object({{"Regex", pattern}})},
                     {"behavior", "Isolated"},
                     {"invert", false}});
  }
  steps.push_back(
      {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}});
  return {{{"type", "Sequence"}, {"pretokenizers", steps}}, entry.flags};
}

namespace {

// The patterns that a byte-level pre-tokenizer cuts by, one after the other; nothing where it does more.
std::optional<std::vector<std::string>> patterns_of(const Json& json) {
  const Json steps =
      json.value("type", "") == "Sequence" ? json.value("pretokenizers", Json::array()) : Json::array({json});
  std::vector<std::string> patterns;
  for (size_t i = 0; i < steps.size(); ++i) {
    const Json& step = steps[i];
    const std::string type = step.is_object() ? step.value("type", "") : "";
    const bool is_last = i + 1 == steps.size();
    if (type == "ByteLevel" && is_last && !step.value("add_prefix_space", true)) {
      if (step.value("use_regex", true)) patterns.emplace_back(kGpt2Pattern);
      return patterns;
    }
    if (type == "Digits") {
      patterns.emplace_back(step.value("individual_digits", false) ? R"(\p{N})" : R"(\p{N}+)");
    } else if (type == "Split" && step.value("behavior", "") == "Isolated" && !step.value("invert", false) &&
               step.value("pattern", Json::object()).contains("Regex")) {
      patterns.push_back(step["pattern"]["Regex"].get<std::string>());
    } else {
      return std::nullopt;
    }
  }
  return std::nullopt;
}

}  // namespace

std::string_view find_gguf_pre_tokenizer(const Json& pre_tokenizer, bool ignores_merges, bool adds_bos) {
  if (pre_tokenizer == falcon_json()) return "falcon";
  const auto patterns = pre_tokenizer.is_object() ? patterns_of(pre_tokenizer) : std::nullopt;
  if (!patterns) return {};
  std::string_view found;
  int best = -1;
  for (const Entry& entry : entries()) {
    if (!std::equal(patterns->begin(), patterns->end(), entry.patterns.begin(), entry.patterns.end()))
      continue;
    const auto has = [&](GgufPreTokenizer::Flag flag) { return (entry.flags & flag) != 0; };
    if (has(GgufPreTokenizer::kEscapedSpaces) || has(GgufPreTokenizer::kWhitespace)) continue;
    if (has(GgufPreTokenizer::kIgnoreMerges) != ignores_merges) continue;  // other ids
    const int fit = has(GgufPreTokenizer::kAddBos) == adds_bos ? 1 : 0;    // the file says it too
    if (fit > best) found = entry.names.front(), best = fit;
  }
  return found;
}

}  // namespace qiao::tokenization
