#include "backend/cpu/weight_memory.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "backend/cpu/memory.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25  // of Linux 6.1; Debian 12's headers may be older
#endif

namespace qiao::cpu {
namespace {

constexpr size_t kSlab = size_t{32} << 20;
constexpr std::chrono::milliseconds kQuiet{300};  // without a new slab: the model is laid out

// Touches the first huge page of fresh memory. Whether that was slow, and ordinary pages can become huge
// later.
bool slow_at_first(std::byte* memory, std::chrono::microseconds slow) {
  const auto begin = std::chrono::steady_clock::now();
  *memory = std::byte{0};
  const auto took = std::chrono::steady_clock::now() - begin;
  return took >= slow && ::madvise(memory, kHugePage, MADV_COLLAPSE) == 0;
}

}  // namespace

WeightMemory::~WeightMemory() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

std::shared_ptr<std::byte> WeightMemory::take(size_t bytes) {
  const size_t size = (bytes + 63) / 64 * 64;
  const std::lock_guard lock(mutex_);
  if (size >= kSlab / 2) return allocate(size);
  if (slab_ == nullptr || size_ - used_ < size) {
    slab_ = allocate(kSlab);
    size_ = kSlab;
    used_ = 0;
  }
  const std::shared_ptr<std::byte> piece(slab_, slab_.get() + used_);
  used_ += size;
  return piece;
}

std::shared_ptr<std::byte> WeightMemory::allocate(size_t bytes) {
  std::shared_ptr<std::byte> memory(static_cast<std::byte*>(allocate_aligned(bytes)), free_aligned);
  const size_t rest = bytes / kHugePage * kHugePage - kHugePage;
  if (!slow_at_first(memory.get(), slow_) || ::madvise(memory.get() + kHugePage, rest, MADV_NOHUGEPAGE) != 0)
    return memory;
  ordinary_.push_back({memory, bytes});
  taken_ = std::chrono::steady_clock::now();
  if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
  changed_.notify_all();
  return memory;
}

void WeightMemory::settle() {
  std::unique_lock lock(mutex_);
  hurry_ = true;
  changed_.notify_all();
  changed_.wait(lock, [&] { return ordinary_.empty() && !collapsing_; });
  hurry_ = false;
}

void WeightMemory::run() {
  ::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()),
                10);  // this thread alone; behind the first answer
  std::unique_lock lock(mutex_);
  while (!stop_) {
    if (ordinary_.empty()) {
      changed_.wait(lock);
      continue;
    }
    if (!hurry_ && std::chrono::steady_clock::now() < taken_ + kQuiet) {
      changed_.wait_until(lock, taken_ + kQuiet);
      continue;
    }
    const Slab slab = ordinary_.front();
    ordinary_.pop_front();
    collapsing_ = true;
    bool able = true;
    for (size_t at = kHugePage; able && !stop_ && at + kHugePage <= slab.bytes; at += kHugePage) {
      lock.unlock();
      if (const auto memory = slab.memory.lock()) {
        ::madvise(memory.get() + at, kHugePage, MADV_HUGEPAGE);
        able = ::madvise(memory.get() + at, kHugePage, MADV_COLLAPSE) == 0;
      } else {
        able = false;  // freed meanwhile
      }
      lock.lock();
    }
    collapsing_ = false;
    changed_.notify_all();
  }
}

}  // namespace qiao::cpu
