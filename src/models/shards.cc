#include "models/shards.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"

namespace qiao {
namespace {

constexpr int64_t kWideBlock = 128;  // widths are cut at multiples of that where they can be: kernels like it
constexpr int64_t kVocabularyRows = 64;
constexpr int kMostRanks = 1024;

// Share `part` of `parts`, in whole units; what is left over is the last one's. Empty where there are fewer
// units.
std::optional<Range> cut(int64_t count, int64_t unit, int64_t part, int64_t parts) {
  const int64_t units = count / unit;
  if (units < parts) return std::nullopt;
  const auto border = [&](int64_t i) { return i == parts ? count : (units * i + parts - 1) / parts * unit; };
  return Range{border(part), border(part + 1) - border(part)};
}

// The largest unit by which `width` is cut evenly, else the block itself.
int64_t even_unit(int64_t width, int64_t block, int64_t size) {
  int64_t best = block;
  for (int64_t unit = block; unit <= std::max(block, kWideBlock); unit *= 2)
    if (width % (unit * size) == 0) best = unit;
  return best;
}

// Heads that share keys and values stay together; with more ranks than key/value heads, each of those is on
// several ranks, which share its query heads out.
bool share_heads(const DecoderConfig& config, int64_t block, int rank, int size, Shards& shards) {
  const int64_t kv_heads = config.num_key_value_heads, group = config.num_attention_heads / kv_heads;
  const int64_t unit = block / std::gcd(block, config.head_dim);  // heads between two borders of blocks
  if (size <= kv_heads) {
    const auto kv = cut(kv_heads, unit / std::gcd(unit, group), rank, size);
    if (!kv) return false;
    shards.kv_heads = *kv;
    shards.heads = {kv->first * group, kv->count * group};
    return true;
  }
  if (size % kv_heads != 0 || (kv_heads > 1 && group % unit != 0)) return false;
  const int64_t copies = size / kv_heads, kv = rank / copies;
  const auto heads = cut(group, unit, rank % copies, copies);
  if (!heads) return false;
  shards.kv_heads = {kv, 1};
  shards.heads = {kv * group + heads->first, heads->count};
  return true;
}

// Of feed-forward layers; 0 where all are experts.
int64_t dense_width(const DecoderConfig& config) {
  const bool dense = !std::ranges::all_of(config.layer_is_moe, [](bool moe) { return moe; });
  return dense ? config.intermediate_size : 0;
}

}  // namespace

std::optional<Shards> share_out(const DecoderConfig& config, const ShardBlocks& blocks, int rank, int size) {
  Shards shards;
  shards.rank = rank;
  shards.size = size;
  if (!share_heads(config, blocks.attention, rank, size, shards)) return std::nullopt;
  const auto share = [&](int64_t width, int64_t block, Range& range) {
    if (width == 0) return true;
    const auto part = cut(width, even_unit(width, block, size), rank, size);
    if (part) range = *part;
    return part.has_value();
  };
  if (!share(dense_width(config), blocks.ffn, shards.ffn) ||
      !share(config.num_experts > 0 ? config.moe_intermediate_size : 0, blocks.expert_ffn,
             shards.expert_ffn) ||
      !share(config.num_experts > 0 ? config.shared_intermediate_size : 0, blocks.shared_ffn,
             shards.shared_ffn))
    return std::nullopt;
  const int64_t rows = config.vocabulary_size >= size * kVocabularyRows ? kVocabularyRows : 1;
  for (int part = 0; part < size; ++part) {
    const auto range = cut(config.vocabulary_size, rows, part, size);
    if (!range) return std::nullopt;
    shards.vocabulary.push_back(*range);
  }
  return shards;
}

Shards need_shards(const DecoderConfig& config, const ShardBlocks& blocks, int rank, int size,
                   const std::string& model) {
  if (auto shards = share_out(config, blocks, rank, size)) return *shards;
  std::vector<int> work;
  for (int n = 1; n <= std::min<int64_t>(config.num_attention_heads, kMostRanks); ++n)
    if (share_out(config, blocks, 0, n)) work.push_back(n);
  std::string widths;
  const auto add = [&](std::string_view what, int64_t width, int64_t block) {
    if (width > 0) widths += fmt::format(", {} of {} in blocks of {}", what, width, block);
  };
  add("a feed-forward width", dense_width(config), blocks.ffn);
  if (config.num_experts > 0) {
    add("experts' widths", config.moe_intermediate_size, blocks.expert_ffn);
    add("a shared expert's", config.shared_intermediate_size, blocks.shared_ffn);
  }
  throw_error(ErrorKind::kUnsupported,
              "{}: cannot be spread over {} processes: it has {} heads of {} with {} for keys and values, in "
              "blocks of {}{}; numbers of processes that it can be spread over: {}",
              model, size, config.num_attention_heads, config.head_dim, config.num_key_value_heads,
              blocks.attention, widths, fmt::join(work, ", "));
}

}  // namespace qiao
