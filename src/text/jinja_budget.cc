#include "text/jinja_budget.h"

#include "base/error.h"

namespace qiao::jinja {
namespace {

// Of the thread's stack (8 MiB by default): what rendering may take, far more than any published template
// does.
constexpr ptrdiff_t kMaxStackBytes = ptrdiff_t{4} << 20;
constexpr size_t kSmallValuesBytes = size_t{16} << 20;

}  // namespace

Budget::Budget(const TemplateLimits& limits)
    : limits_(limits),
      steps_left_(limits.max_steps),
      max_live_bytes_(limits.max_output_bytes > SIZE_MAX / 8
                          ? SIZE_MAX
                          : 4 * limits.max_output_bytes + kSmallValuesBytes),
      stack_base_(static_cast<const char*>(__builtin_frame_address(0))),
      previous_(current_) {
  current_ = this;
}

Budget::~Budget() { current_ = previous_; }

void Budget::charge(size_t bytes) {
  if (bytes > max_live_bytes_ - live_bytes_) {
    throw_error(ErrorKind::kTooLarge, "the template's values need more than {} bytes of memory",
                max_live_bytes_);
  }
  live_bytes_ += bytes;
}

void Budget::check_stack() const {
  const char* here = static_cast<const char*>(__builtin_frame_address(0));
  if (stack_base_ - here > kMaxStackBytes) {
    throw_error(ErrorKind::kTooLarge, "the template's expressions and calls are nested too deep");
  }
}

void Budget::out_of_steps() const {
  throw_error(ErrorKind::kTooLarge, "the template needs more than {} steps", limits_.max_steps);
}

void check_string_size(size_t bytes) {
  if (const Budget* budget = Budget::current(); budget && bytes > budget->limits().max_output_bytes) {
    throw_error(ErrorKind::kTooLarge, "text longer than {} bytes", budget->limits().max_output_bytes);
  }
}

void check_repeated_size(size_t bytes, size_t count) {
  size_t total = 0;
  if (__builtin_mul_overflow(bytes, count, &total)) total = SIZE_MAX;
  check_string_size(total);
}

int max_value_depth() {
  const Budget* budget = Budget::current();
  return budget ? budget->limits().max_depth : TemplateLimits().max_depth;
}

}  // namespace qiao::jinja
