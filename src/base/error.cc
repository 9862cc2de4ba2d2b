#include "base/error.h"

#include <cstdio>
#include <cstdlib>

namespace qiao {

void assertion_failed(const char* condition, const char* file, int line) {
  std::fprintf(stderr, "qiao: internal error: %s does not hold (%s:%d). Please report this.\n", condition,
               file, line);
  std::abort();
}

}  // namespace qiao
