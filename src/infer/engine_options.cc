#include "infer/engine_options.h"

#include <algorithm>

#include "base/error.h"
#include "infer/draft_model.h"
#include "infer/page_pool.h"

namespace qiao {
namespace {

// Of the free memory: the rest of the machine's is for all else, of a device's own for its driver's kernels
// and graphs.
constexpr double kMachineShare = 0.5, kDeviceShare = 0.9;
constexpr int64_t kMostSlots = INT32_MAX;  // of the cache: their numbers have 31 bits

constexpr int64_t kLeastContext = 2;  // a token of a prompt and one of an answer
constexpr int64_t kSmallBatch = 64;   // -b, below which there is little to save

double gib(uint64_t bytes) { return static_cast<double>(bytes) / 0x1p30; }

// Of both models; the draft keeps all its layers in full pages.
KvCache::PageBytes bytes_per_page(const LanguageModel& model, const EngineOptions& o) {
  KvCache::PageBytes bytes =
      KvCache::bytes_per_page(model.backend(), model.config(), o.page_tokens, o.kv_dtype);
  if (!o.draft) return bytes;
  const KvCache::PageBytes draft =
      KvCache::bytes_per_page(o.draft->backend(), o.draft->config(), o.page_tokens, o.kv_dtype);
  bytes.full += draft.full + draft.sliding;
  return bytes;
}

// A cache of one page, whose shapes tell what steps take.
KvCache page_of(const LanguageModel& model, const EngineOptions& o, bool slides) {
  return KvCache(model.backend(), model.config(), 1, o.page_tokens, o.kv_dtype, slides ? 1 : 0);
}

void check_ranges(const EngineOptions& o) {
  if (!(o.memory_share >= 0 && o.memory_share <= 1)) {
    throw_error(ErrorKind::kInvalidInput, "engine: memory share {} is out of range; allowed: 0 to 1",
                o.memory_share);
  }
  const auto within = [](int64_t value, int64_t least) { return value >= least && value <= INT32_MAX; };
  if (!within(o.slots, 1) || !within(o.page_tokens, 1) || !within(o.batch_tokens, 1) || !within(o.pages, 0) ||
      !within(o.sliding_pages, 0) || !within(o.prompt_logprob_rows, 1) || !within(o.lookup, 0) ||
      !within(o.draft_max, 0) || o.context > INT32_MAX) {
    throw_error(ErrorKind::kInvalidInput,
                "engine: context {}, slots {}, page tokens {}, pages {}, sliding pages {}, batch tokens {}, "
                "log-probability rows {}, lookup {} and draft tokens {} must be positive and fit 31 bits",
                o.context, o.slots, o.page_tokens, o.pages, o.sliding_pages, o.batch_tokens,
                o.prompt_logprob_rows, o.lookup, o.draft_max);
  }
}

void check_context(int64_t context, std::string_view why) {
  if (context >= kLeastContext) return;
  throw_error(ErrorKind::kInvalidInput,
              "the context (-c) is {} token{}; the least is {}: one of a prompt and one of its answer",
              context, why, kLeastContext);
}

// How many full pages `bytes` hold, with a sliding page beside each as far as there are to be so many.
int64_t pages_that_fit(uint64_t bytes, const KvCache::PageBytes& page, int64_t sliding_pages) {
  const auto beside = static_cast<uint64_t>(sliding_pages);
  uint64_t pages = bytes / std::max<uint64_t>(page.full + page.sliding, 1);
  if (pages > beside) pages = (bytes - beside * page.sliding) / std::max<uint64_t>(page.full, 1);
  return static_cast<int64_t>(std::min<uint64_t>(pages, INT32_MAX));
}

// What would help where so much memory is free and one context does not fit.
std::string ways_out(const LanguageModel& model, const EngineOptions& o, uint64_t free, uint64_t work) {
  std::vector<std::string> ways;
  const auto longest = [&](DType dtype) {
    EngineOptions other = o;
    other.kv_dtype = dtype;
    const int64_t fits = pages_that_fit(free > work ? free - work : 0, bytes_per_page(model, other), 0);
    return std::min(fits * o.page_tokens, o.context);
  };
  if (const int64_t tokens = longest(o.kv_dtype); tokens >= kLeastContext)
    ways.push_back(fmt::format("a context of {} (-c)", tokens));
  const auto fits_heads = [&](DType dtype) { return model.config().head_dim % kv_row_step(dtype) == 0; };
  const bool q8 = fits_heads(DType::kQ8_0);  // the more exact of the small types
  const DType small = q8 ? DType::kQ8_0 : DType::kF8_E4M3;
  if (fits_heads(small) && longest(small) > longest(o.kv_dtype))
    ways.push_back(fmt::format("--kv-type {} with a context of {}", q8 ? "q8_0" : "fp8", longest(small)));
  if (o.batch_tokens > kSmallBatch || o.slots > 1)
    ways.emplace_back("fewer tokens a step (-b) or slots (-np)");
  ways.emplace_back("a smaller or quantized model file (--quantize fp8 makes one of floats at load)");
  return fmt::format("{}", fmt::join(ways, "; or "));
}

}  // namespace

// A draft is made of tokens that are known.
bool runs_ahead(const LanguageModel& model, const EngineOptions& o) {
  return o.run_ahead.value_or(model.backend().runs_behind()) && !o.draft && o.lookup == 0;
}

uint64_t workspace_bytes(const LanguageModel& model, const EngineOptions& o) {
  const bool slides = bytes_per_page(model, o).sliding > 0;
  uint64_t bytes = StepRunner::planned_bytes(model, page_of(model, o, slides), step_limits(o));
  if (o.draft) bytes += DraftModel::planned_bytes(*o.draft, page_of(*o.draft, o, false), draft_limits(o));
  return bytes;
}

EngineOptions complete_options(const LanguageModel& model, const EngineOptions& options) {
  EngineOptions o = options;
  const DecoderConfig& config = model.config();
  const int64_t trained = config.max_position_embeddings;
  if (o.context <= 0) o.context = trained > 0 ? std::min<int64_t>(trained, 8192) : 4096;
  check_ranges(o);
  check_context(o.context, "");
  if (o.draft) DraftModel::check_vocabulary(*o.draft, model);
  const KvCache::PageBytes page = bytes_per_page(model, o);
  const DeviceInfo device = model.backend().describe();
  const uint64_t free = model.decoder().free_bytes(), work = workspace_bytes(model, o);
  if (o.memory_share == 0) o.memory_share = device.own_memory ? kDeviceShare : kMachineShare;
  const bool slides = page.sliding > 0, asked = o.pages > 0;
  const int64_t under_way = runs_ahead(model, o) ? 2 : 1;
  const int64_t used =
      PagePools::window_pages(config.sliding_window, o.page_tokens, o.slots, under_way * most_step_tokens(o));
  o.sliding_pages = !slides ? 0 : o.sliding_pages == 0 ? 2 * used : std::max(o.sliding_pages, used);
  if (!asked) {
    const int64_t one = pages_per_sequence(o);
    const auto share = static_cast<uint64_t>(static_cast<double>(free) * o.memory_share);
    const int64_t fit = pages_that_fit(share > work ? share - work : 0, page, o.sliding_pages);
    o.pages = std::min(std::max(fit, one), std::max(kMostSlots / o.page_tokens, one));
    if (!o.fill_memory || !device.own_memory) o.pages = std::min(o.pages, one * o.slots);
  }
  o.sliding_pages = std::min(o.sliding_pages, o.pages);
  if (o.pages > kMostSlots / o.page_tokens) {
    throw_error(ErrorKind::kTooLarge, "{} pages of {} tokens are more than a cache can hold ({} tokens)",
                o.pages, o.page_tokens, kMostSlots);
  }
  const uint64_t need = cache_bytes(model, o);
  if (need + work > free) {
    throw_error(
        ErrorKind::kTooLarge,
        "the cache of {} pages of {} tokens takes {:.2f} GiB and the steps' workspace {:.2f} GiB, and "
        "{:.2f} GiB of {} memory are free beside the weights; {}",
        o.pages, o.page_tokens, gib(need), gib(work), gib(free),
        device.own_memory ? "the device's" : "the machine's",
        asked ? "lower --kv-pages" : "what may fit: " + ways_out(model, o, free, work));
  }
  o.context = std::min(o.context, o.pages * o.page_tokens);
  check_context(o.context,
                fmt::format(", which is all that {} of {} tokens hold",
                            o.pages == 1 ? "1 page" : fmt::format("{} pages", o.pages), o.page_tokens));
  return o;
}

uint64_t cache_bytes(const LanguageModel& model, const EngineOptions& options) {
  const KvCache::PageBytes page = bytes_per_page(model, options);
  return page.full * static_cast<uint64_t>(options.pages) +
         page.sliding * static_cast<uint64_t>(options.sliding_pages);
}

}  // namespace qiao
