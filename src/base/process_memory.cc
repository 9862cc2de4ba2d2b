#include "base/process_memory.h"

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <fstream>
#include <string>

namespace qiao {
namespace {

// A line "Key:   value kB" of /proc/self/status, in bytes.
uint64_t status_bytes(const std::string& key) {
  std::ifstream file("/proc/self/status");
  std::string word;
  uint64_t kilobytes = 0;
  while (file >> word) {
    if (word == key && file >> kilobytes) return kilobytes * 1024;
  }
  return 0;
}

}  // namespace

void give_back_large_pieces() {
#if defined(__GLIBC__)
  // Named, the limit no longer grows with what is freed.
  mallopt(M_MMAP_THRESHOLD, 128 << 10);
#endif
}

uint64_t resident_bytes() { return status_bytes("VmRSS:"); }
uint64_t peak_resident_bytes() { return status_bytes("VmHWM:"); }

}  // namespace qiao
