#include "backend/cuda/cuda_class.h"
#include "base/error.h"

namespace qiao::cuda {

std::unique_ptr<KvPages> CudaBackend::do_make_kv_pages(const KvPagesSpec&) {
  throw_error(ErrorKind::kUnsupported, "make_kv_pages: chip cuda keeps no pages yet");
}
void CudaBackend::do_export_kv_page(const KvPages&, int64_t, std::byte*) {
  throw_error(ErrorKind::kUnsupported, "export_kv_page: chip cuda keeps no pages yet");
}
void CudaBackend::do_import_kv_page(KvPages&, int64_t, const std::byte*) {
  throw_error(ErrorKind::kUnsupported, "import_kv_page: chip cuda keeps no pages yet");
}

}  // namespace qiao::cuda
