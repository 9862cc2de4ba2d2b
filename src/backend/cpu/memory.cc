#include "backend/cpu/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <optional>
#include <string>

#include "base/error.h"

namespace qiao::cpu {
namespace {

constexpr size_t kChecked = size_t{1} << 20;

// A line "Key:   value kB" of /proc/meminfo, in bytes.
uint64_t meminfo(const std::string& key) {
  std::ifstream file("/proc/meminfo");
  std::string word;
  uint64_t kilobytes = 0;
  while (file >> word) {
    if (word == key && file >> kilobytes) return kilobytes * 1024;
  }
  return 0;
}

std::optional<uint64_t> number_in(const std::string& path) {
  std::ifstream file(path);
  uint64_t value = 0;
  if (file >> value) return value;  // "max" is no number: no limit
  return std::nullopt;
}

// Pages of files that the kernel gives up when a cgroup is at its limit.
uint64_t inactive_file(const std::string& path) {
  std::ifstream file(path);
  std::string key;
  uint64_t value = 0;
  while (file >> key >> value) {
    if (key == "inactive_file") return value;
  }
  return 0;
}

// This process's folder in the unified hierarchy ("0::/a/b" gives "/a/b").
std::string cgroup_folder() {
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("0::", 0) == 0) return line.substr(3);
  }
  return "/";
}

// Lowers `total` and `free` to what each cgroup above this process allows.
void apply_cgroups(uint64_t& total, uint64_t& free) {
  const std::string root = "/sys/fs/cgroup";
  const auto apply = [&](const std::string& limit_file, const std::string& used_file,
                         const std::string& stat) {
    const auto limit = number_in(limit_file), used = number_in(used_file);
    if (!limit || !used) return;
    const uint64_t taken = *used - std::min(*used, inactive_file(stat));
    total = std::min(total, *limit);
    free = std::min(free, *limit - std::min(*limit, taken));
  };
  std::string folder = cgroup_folder();
  while (true) {
    const std::string at = root + (folder == "/" ? "" : folder);
    apply(at + "/memory.max", at + "/memory.current", at + "/memory.stat");
    if (folder.empty() || folder == "/") break;
    folder.resize(folder.rfind('/'));
  }
  const std::string old = root + "/memory";  // version 1
  apply(old + "/memory.limit_in_bytes", old + "/memory.usage_in_bytes", old + "/memory.stat");
}

}  // namespace

uint64_t total_memory() {
  uint64_t total = meminfo("MemTotal:"), free = total;
  apply_cgroups(total, free);
  return total;
}

uint64_t free_memory() {
  uint64_t total = meminfo("MemTotal:"), free = meminfo("MemAvailable:");
  apply_cgroups(total, free);
  return free;
}

void* allocate_aligned(size_t bytes) {
  if (bytes >= kChecked) {
    if (const uint64_t free = free_memory(); bytes > free) {
      throw_error(ErrorKind::kTooLarge, "chip cpu: {:.1f} MB of memory wanted, {:.1f} MB free",
                  static_cast<double>(bytes) * 1e-6, static_cast<double>(free) * 1e-6);
    }
  }
  const size_t alignment = bytes >= 2 * kHugePage ? kHugePage : 64;
  const size_t size = (std::max<size_t>(bytes, 1) + 63) / 64 * 64;
  void* data = nullptr;  // not aligned_alloc: that wants whole pages, which would be taken
  if (::posix_memalign(&data, alignment, size) != 0) {
    throw_error(ErrorKind::kTooLarge,
                "chip cpu: {:.1f} MB of memory wanted, the system refused ({:.1f} MB free)",
                static_cast<double>(bytes) * 1e-6, static_cast<double>(free_memory()) * 1e-6);
  }
#if defined(MADV_HUGEPAGE)
  // Whole huge pages alone: what is left of the last one stays small pages, and free.
  if (alignment == kHugePage) madvise(data, size / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  return data;
}

void free_aligned(void* data) { std::free(data); }

}  // namespace qiao::cpu
