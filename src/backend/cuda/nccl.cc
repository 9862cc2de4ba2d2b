#include "backend/cuda/nccl.h"

#include <dlfcn.h>

#include <type_traits>

#include "base/error.h"

namespace qiao::cuda {
namespace {

Nccl load() {
  constexpr const char* kLibrary = "libnccl.so.2";
  void* const library = ::dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    throw_error(ErrorKind::kUnavailable,
                "cuda: several GPUs need NCCL, and {} is not here: install the package libnccl2, or add the "
                "folder of the wheel nvidia-nccl-cu13 (nvidia/nccl/lib) to LD_LIBRARY_PATH; "
                "QIAO_COLLECTIVES=host goes without, through the host's memory",
                kLibrary);
  }
  Nccl nccl{};
  const auto find = [&](auto& function, const char* name) {
    void* const symbol = ::dlsym(library, name);
    if (symbol == nullptr)
      throw_error(ErrorKind::kUnavailable, "cuda: {} has no {}: NCCL 2.7 or newer was expected", kLibrary,
                  name);
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(symbol);
  };
  find(nccl.get_unique_id, "ncclGetUniqueId");
  find(nccl.init_rank, "ncclCommInitRank");
  find(nccl.abort, "ncclCommAbort");
  find(nccl.error_string, "ncclGetErrorString");
  find(nccl.group_start, "ncclGroupStart");
  find(nccl.group_end, "ncclGroupEnd");
  find(nccl.send, "ncclSend");
  find(nccl.receive, "ncclRecv");
  return nccl;
}

}  // namespace

const Nccl& find_nccl() {
  static const Nccl nccl = load();
  return nccl;
}

}  // namespace qiao::cuda
