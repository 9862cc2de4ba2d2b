#include "infer/engine_options.h"

#include <algorithm>

#include "base/error.h"
#include "infer/draft_model.h"
#include "infer/page_pool.h"

namespace qiao {
namespace {

constexpr uint64_t kCacheShare = 2;        // half of the free memory: the rest is the machine's
constexpr int64_t kMostSlots = INT32_MAX;  // of the cache: their numbers have 31 bits

double gib(uint64_t bytes) { return static_cast<double>(bytes) / 0x1p30; }

// Of both models; the draft keeps all its layers in full pages.
KvCache::PageBytes bytes_per_page(const LanguageModel& model, const EngineOptions& o) {
  KvCache::PageBytes bytes = KvCache::bytes_per_page(model.config(), o.page_tokens, o.kv_dtype);
  if (!o.draft) return bytes;
  const KvCache::PageBytes draft = KvCache::bytes_per_page(o.draft->config(), o.page_tokens, o.kv_dtype);
  bytes.full += draft.full + draft.sliding;
  return bytes;
}

void check_ranges(const EngineOptions& o) {
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
  constexpr int64_t kLeast = 2;  // a token of a prompt and one of an answer
  if (context >= kLeast) return;
  throw_error(ErrorKind::kInvalidInput,
              "the context (-c) is {} token{}; the least is {}: one of a prompt and one of its answer",
              context, why, kLeast);
}

// How many full pages `bytes` hold, with a sliding page beside each as far as there are to be so many.
int64_t pages_that_fit(uint64_t bytes, const KvCache::PageBytes& page, int64_t sliding_pages) {
  const auto beside = static_cast<uint64_t>(sliding_pages);
  uint64_t pages = bytes / std::max<uint64_t>(page.full + page.sliding, 1);
  if (pages > beside) pages = (bytes - beside * page.sliding) / std::max<uint64_t>(page.full, 1);
  return static_cast<int64_t>(std::min<uint64_t>(pages, INT32_MAX));
}

}  // namespace

EngineOptions complete_options(const LanguageModel& model, const EngineOptions& options) {
  EngineOptions o = options;
  const DecoderConfig& config = model.config();
  const int64_t trained = config.max_position_embeddings;
  if (o.context <= 0) o.context = trained > 0 ? std::min<int64_t>(trained, 8192) : 4096;
  check_ranges(o);
  check_context(o.context, "");
  if (!o.cache_directory.empty() && model.decoder().ranks() > 1) {
    throw_error(ErrorKind::kUnsupported,
                "--kv-cache-dir: pages are kept by one process alone, and the model is spread over {}",
                model.decoder().ranks());
  }
  if (o.draft) DraftModel::check_vocabulary(*o.draft, model);
  const KvCache::PageBytes page = bytes_per_page(model, o);
  const uint64_t free = model.decoder().free_bytes();
  const bool slides = page.sliding > 0, asked = o.pages > 0;
  const int64_t used =
      PagePools::window_pages(config.sliding_window, o.page_tokens, o.slots, most_step_tokens(o));
  o.sliding_pages = !slides ? 0 : o.sliding_pages == 0 ? 2 * used : std::max(o.sliding_pages, used);
  if (!asked) {
    const int64_t one = pages_per_sequence(o);
    const int64_t fit = pages_that_fit(free / kCacheShare, page, o.sliding_pages);
    o.pages = std::min({one * o.slots, std::max(fit, one), std::max(kMostSlots / o.page_tokens, one)});
  }
  o.sliding_pages = std::min(o.sliding_pages, o.pages);
  if (o.pages > kMostSlots / o.page_tokens) {
    throw_error(ErrorKind::kTooLarge, "{} pages of {} tokens are more than a cache can hold ({} tokens)",
                o.pages, o.page_tokens, kMostSlots);
  }
  const uint64_t need = cache_bytes(model, o);
  if (need > free) {
    throw_error(ErrorKind::kTooLarge,
                "the cache of {} pages of {} tokens takes {:.1f} GiB, and {:.1f} GiB of memory are free; "
                "lower {}",
                o.pages, o.page_tokens, gib(need), gib(free), asked ? "--kv-pages" : "-c (context)");
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
