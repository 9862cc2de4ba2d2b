// What one render of a template may spend: steps, bytes alive, length of any one string, depth.
#pragma once

#include <cstddef>
#include <cstdint>

#include "text/chat_template.h"

namespace qiao::jinja {

// The budget of the render that runs on this thread. Values charge themselves to it when they are made and
// give back when they go, so that no operation can build more than the limits allow. Making one installs it
// for its lifetime; the one before is put back after.
class Budget {
 public:
  explicit Budget(const TemplateLimits& limits);
  ~Budget();
  Budget(const Budget&) = delete;
  Budget& operator=(const Budget&) = delete;

  static Budget* current() { return current_; }

  // Throws Error(kTooLarge) once max_steps are spent.
  void step(uint64_t count) {
    if (count > steps_left_) out_of_steps();
    steps_left_ -= count;
  }
  void charge(size_t bytes);
  void give_back(size_t bytes) { live_bytes_ -= bytes; }
  const TemplateLimits& limits() const { return limits_; }

  // Throws Error(kTooLarge) where the C++ stack of this render has grown past its share.
  void check_stack() const;

 private:
  [[noreturn]] void out_of_steps() const;

  static constinit inline thread_local Budget* current_ = nullptr;
  TemplateLimits limits_;
  uint64_t steps_left_;
  size_t live_bytes_ = 0;
  size_t max_live_bytes_;
  const char* stack_base_;
  Budget* previous_;
};

// Spends steps of the render at hand; nothing outside of one.
inline void step(uint64_t count = 1) {
  if (Budget* budget = Budget::current()) budget->step(count);
}

// Work over `bytes` of text: a step for every 64, so that long strings cost what they take.
inline void step_bytes(size_t bytes) { step(1 + bytes / 64); }

// Throws Error(kTooLarge) where a string of `bytes` is over the limit. Called before it is built.
void check_string_size(size_t bytes);

// The same for `count` copies of `bytes`, overflow-safe.
void check_repeated_size(size_t bytes, size_t count);

// The depth limit of values (lists in lists…).
int max_value_depth();

}  // namespace qiao::jinja
