#include "train/background.h"

#include <chrono>

#include "base/error.h"

namespace qiao::train {

Background::~Background() {
  if (!is_done()) pending_.wait();
}

void Background::start(std::function<void()> job, When when) {
  QIAO_ASSERT(!pending_.valid());
  pending_ = std::async(when == When::kNow ? std::launch::async : std::launch::deferred, std::move(job));
}

bool Background::is_done() const {
  return !pending_.valid() || pending_.wait_for(std::chrono::seconds(0)) != std::future_status::timeout;
}

void Background::finish() {
  if (pending_.valid()) pending_.get();
}

}  // namespace qiao::train
