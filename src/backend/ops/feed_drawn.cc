#include "backend/ops/feed_drawn.h"

#include "backend/ops/check.h"

namespace qiao {

void FeedDrawn::check() const {
  constexpr std::string_view op = "feed_drawn";
  check::rank(op, "ids", ids, 1);
  check::rank(op, "tokens", tokens, 1);
  check::dense(op, "ids", ids, DType::kI32, {ids.shape[0]});
  check::dense(op, "from", from, DType::kI32, {tokens.shape[0]});
  check::dense(op, "tokens", tokens, DType::kI32, {tokens.shape[0]});
  check::distinct(op, "tokens", tokens, "ids", ids);
  check::distinct(op, "tokens", tokens, "from", from);
}

double FeedDrawn::bytes() const { return static_cast<double>(3 * tokens.bytes()); }

}  // namespace qiao
