// feed_drawn: none, some and all tokens drawn, ids that could not be drawn, more ids than tokens.
#include "backend/ops/feed_drawn.h"

#include "backend/conformance/harness.h"

namespace qiao::conformance {
namespace {

void feed_drawn_case(Harness& h, size_t line) {
  const int64_t tokens = h.pick<int64_t>({0, 1, 2, 17, 127, 128, 129, 300}), drawn = h.between(1, 300);
  Guarded ids(h, DType::kI32, {drawn}), from(h, DType::kI32, {tokens}), out(h, DType::kI32, {tokens});
  ids.fill([&] { return static_cast<int32_t>(h.chance(0.1) ? -1 : h.between(0, INT32_MAX)); });
  const double share = h.pick({0.0, 0.5, 1.0});
  from.fill([&] { return static_cast<int32_t>(h.chance(share) ? h.between(0, drawn - 1) : -1); });
  out.fill([&] { return static_cast<int32_t>(h.between(0, 1000)); });
  h.chip().feed_drawn({ids.device(), from.device(), out.device()});
  ids.download(line, "ids", false);
  from.download(line, "from", false);
  out.download(line, "tokens");
  h.law().feed_drawn({ids.host(), from.host(), out.host()});
  for (int64_t t = 0; t < tokens; ++t)
    h.element(line, out.result_at<int32_t>(t), out.host_at<int32_t>(t), 0, t, 0);
}

}  // namespace

void conform_feed_drawn(Harness& h) {
  const size_t line = h.line("feed_drawn", "I32");
  for (int i = 0; i < (h.options().quick ? 8 : 40); ++i) h.run_case(line, [&] { feed_drawn_case(h, line); });
  h.run_case(line, [&] {
    if (!h.benches()) return;
    Guarded ids(h, DType::kI32, {256}), from(h, DType::kI32, {256}), tokens(h, DType::kI32, {256});
    ids.fill([] { return 7; });
    from.fill([&] { return static_cast<int32_t>(h.between(0, 255)); });
    tokens.fill([] { return 0; });
    const FeedDrawn op{ids.device(), from.device(), tokens.device()};
    h.bench(line, "T=256", op.bytes(), 0, Harness::Peak::kNone, [&] { h.chip().feed_drawn(op); });
  });
}

}  // namespace qiao::conformance
