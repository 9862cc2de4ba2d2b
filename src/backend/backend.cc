#include "backend/backend.h"

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

#include "backend/host_collectives.h"
#include "backend/ops/check.h"
#include "base/error.h"

namespace qiao {

Buffer::Buffer(Buffer&& other) noexcept
    : backend_(std::exchange(other.backend_, nullptr)),
      data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(backend_, other.backend_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

Buffer::~Buffer() {
  if (backend_ != nullptr) backend_->do_free(data_, bytes_);
}

Buffer Backend::allocate(size_t bytes) { return Buffer(this, do_allocate(bytes), bytes); }

Weight::Weight(const WeightSource& source)
    : experts_(source.experts), columns_(source.columns), square_scales_(source.square_scales) {
  const size_t parts = source.parts.size() / static_cast<size_t>(source.experts);
  for (size_t i = 0; i < parts; ++i) {
    segments_.push_back({source.parts[i].dtype, rows_, source.parts[i].rows});
    rows_ += source.parts[i].rows;
  }
}

KvPages::KvPages(const KvPagesSpec& spec) : spec_(spec) {}

size_t KvPages::page_bytes() const {
  return static_cast<size_t>(2 * spec_.page_tokens * spec_.kv_heads *
                             kv_row_bytes(spec_.dtype, spec_.head_dim));
}

int64_t kv_row_bytes(DType dtype, int64_t head_dim) {
  const auto scale = static_cast<int64_t>(dtype == DType::kF8_E4M3 ? sizeof(float) : 0);
  return scale + row_bytes(dtype, head_dim);
}

int64_t kv_row_step(DType dtype) { return dtype == DType::kF8_E4M3 ? 16 : traits(dtype).block_elements; }

namespace {

template <typename Op>
requires requires(const Op& op) { op.workspace; }
void check_workspace(const Backend& backend, std::string_view name, const Op& op) {
  const size_t needed = backend.workspace_bytes(op);
  const auto given = static_cast<size_t>(op.workspace.bytes());
  if (given < needed) {
    throw_error(ErrorKind::kInvalidInput, "{}: workspace has {} bytes, expected {}", name, given, needed);
  }
}

// Ops without a workspace.
template <typename Op>
requires(!requires(const Op& op) { op.workspace; }) void check_workspace(const Backend&, std::string_view,
                                                                         const Op&) {}

// The (query, key) pairs of packed causal sequences, whose starts lie on the device.
template <typename Op>
int64_t causal_pairs(Backend& backend, const Op& op) {
  std::vector<int32_t> starts(static_cast<size_t>(op.starts.elements()));
  backend.download(starts.data(), op.starts.data, starts.size() * sizeof(int32_t));
  int64_t pairs = 0;
  for (size_t s = 1; s < starts.size(); ++s) {
    const int64_t length = int64_t{starts[s]} - starts[s - 1];
    const int64_t window = op.window > 0 ? std::min(op.window, length) : length;
    pairs += op.causal ? length * window - window * (window - 1) / 2 : length * length;
  }
  return pairs;
}

template <typename Op>
double flops_of(Backend& backend, const Op& op) {
  if constexpr (requires { op.flops(); }) {
    return op.flops();
  } else if constexpr (requires {
                         op.starts;
                         op.causal;
                       }) {
    return op.flops(causal_pairs(backend, op));
  } else {
    return 0;
  }
}

template <typename Op>
double bytes_of(const Op& op) {
  if constexpr (requires { op.bytes(); }) {
    return op.bytes();
  } else {
    return 0;
  }
}

}  // namespace

template <class Op, class Run>
void Backend::watched(std::string_view name, const Op& op, Run run) {
  if (watch_ == nullptr) {
    run();
    return;
  }
  using Clock = std::chrono::steady_clock;
  synchronize();
  const Clock::time_point begin = Clock::now();
  run();
  synchronize();
  const std::chrono::duration<double> seconds = Clock::now() - begin;
  watch_->on_op(name, seconds.count(), flops_of(*this, op), bytes_of(op));
}

namespace {

struct HostLanding final : Landing {
  std::vector<std::byte> bytes;
};

}  // namespace

// Of a chip that does not run behind: at once.
void Backend::start_download(std::unique_ptr<Landing>& landing, const void* device, size_t bytes) {
  if (landing == nullptr) landing = std::make_unique<HostLanding>();
  auto& host = static_cast<HostLanding&>(*landing);
  host.bytes.resize(bytes);
  download(host.bytes.data(), device, bytes);
}

const std::byte* Backend::finish_download(Landing& landing) {
  return static_cast<HostLanding&>(landing).bytes.data();
}

// What is timed op by op is given op by op.
std::string name_without_threads(const DeviceInfo& info) {
  std::string name = info.name;
  const std::string threads = fmt::format(", {} thread{}", info.threads, info.threads == 1 ? "" : "s");
  if (const size_t at = name.find(threads); at != std::string::npos) name.erase(at, threads.size());
  return name;
}

std::unique_ptr<Collectives> Backend::make_collectives(Communicator& communicator) {
  return make_host_collectives(*this, communicator);
}

void Backend::repeat(std::unique_ptr<Recording>& recording, const std::function<void()>& work) {
  watch_ == nullptr ? do_repeat(recording, work) : work();
}

namespace {

bool may_be_weight(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16 || traits(dtype).quantized;
}

}  // namespace

std::unique_ptr<Weight> Backend::make_weight(const WeightSource& source) {
  const auto refuse = [](const std::string& what) {
    throw_error(ErrorKind::kInvalidInput, "make_weight: {}", what);
  };
  if (source.experts < 1 || source.columns < 1 || source.parts.empty() ||
      source.parts.size() % static_cast<size_t>(source.experts) != 0) {
    refuse(fmt::format("{} experts, {} columns and {} parts do not make a weight", source.experts,
                       source.columns, source.parts.size()));
  }
  const size_t per_expert = source.parts.size() / static_cast<size_t>(source.experts);
  for (size_t i = 0; i < source.parts.size(); ++i) {
    const WeightPart& part = source.parts[i];
    const WeightPart& first = source.parts[i % per_expert];
    if (!may_be_weight(part.dtype)) refuse(fmt::format("part {} is {}", i, traits(part.dtype).name));
    if (part.rows < 1 || part.bytes == nullptr) refuse(fmt::format("part {} has no rows", i));
    if (source.columns % traits(part.dtype).block_elements != 0) {
      refuse(fmt::format("part {}: {} columns are not a multiple of {}'s block of {}", i, source.columns,
                         traits(part.dtype).name, traits(part.dtype).block_elements));
    }
    if (part.rows != first.rows || part.dtype != first.dtype)
      refuse(fmt::format("part {}: experts differ", i));
  }
  return do_make_weight(source);
}

void Backend::read_weight(const Weight& weight, int64_t expert, size_t segment, std::byte* bytes) {
  QIAO_ASSERT(expert >= 0 && expert < weight.experts() && segment < weight.segments().size());
  do_read_weight(weight, expert, segment, bytes);
}

void Backend::write_weight(Weight& weight, int64_t expert, const Tensor& values) {
  if (expert < 0 || expert >= weight.experts()) {
    throw_error(ErrorKind::kInvalidInput, "write_weight: expert is {}, expected it in [0, {})", expert,
                weight.experts());
  }
  check::dense("write_weight", "values", values, DType::kF32, {weight.rows(), weight.columns()});
  for (const Weight::Segment& segment : weight.segments()) {
    if (!traits(segment.dtype).quantized) continue;
    if (segment.dtype == DType::kF8_128 && weight.square_scales()) continue;
    throw_error(ErrorKind::kUnsupported,
                "write_weight: rows from {} are {}, a block format, which is never quantized again; weights "
                "that change are F32, F16, BF16, or F8_128 with a scale for 128 x 128",
                segment.first_row, traits(segment.dtype).name);
  }
  watched("write_weight", values, [&] { do_write_weight(weight, expert, values); });
}

void Backend::do_write_weight(Weight&, int64_t, const Tensor&) {
  throw_error(ErrorKind::kUnsupported, "write_weight: chip {} cannot rewrite a weight", chip());
}

std::unique_ptr<KvPages> Backend::make_kv_pages(const KvPagesSpec& spec) {
  const bool dtype_ok = spec.dtype == DType::kF32 || spec.dtype == DType::kF16 ||
                        spec.dtype == DType::kBF16 || spec.dtype == DType::kQ8_0 ||
                        spec.dtype == DType::kF8_E4M3;
  if (!dtype_ok || spec.pages < 1 || spec.page_tokens < 1 || spec.kv_heads < 1 || spec.head_dim < 1 ||
      spec.pages > INT32_MAX / spec.page_tokens) {
    throw_error(ErrorKind::kInvalidInput,
                "make_kv_pages: {} pages of {} tokens, {} heads of {} in {} cannot be kept", spec.pages,
                spec.page_tokens, spec.kv_heads, spec.head_dim, traits(spec.dtype).name);
  }
  if (const int64_t step = kv_row_step(spec.dtype); spec.head_dim % step != 0) {
    throw_error(ErrorKind::kInvalidInput,
                "make_kv_pages: heads of {} cannot be kept in {}, whose rows are multiples of {}; use F16, "
                "BF16 or F32",
                spec.head_dim, traits(spec.dtype).name, step);
  }
  return do_make_kv_pages(spec);
}

void Backend::export_kv_page(const KvPages& pages, int64_t page, std::byte* bytes) {
  QIAO_ASSERT(page >= 0 && page < pages.spec().pages);
  do_export_kv_page(pages, page, bytes);
}

void Backend::import_kv_page(KvPages& pages, int64_t page, const std::byte* bytes) {
  QIAO_ASSERT(page >= 0 && page < pages.spec().pages);
  do_import_kv_page(pages, page, bytes);
}

#define QIAO_OP(method, Arguments)                                                                \
  void Backend::method(const Arguments& op) {                                                     \
    op.check();                                                                                   \
    check_workspace(*this, #method, op);                                                          \
    watched(#method, op, [&] { do_##method(op); });                                               \
  }                                                                                               \
  void Backend::do_##method(const Arguments&) {                                                   \
    throw_error(ErrorKind::kUnsupported, "op " #method ": chip {} has no kernel for it", chip()); \
  }
QIAO_OP(gather, Gather)
QIAO_OP(gather_rows, GatherRows)
QIAO_OP(moe_route, MoeRoute)
QIAO_OP(moe_permute, MoePermute)
QIAO_OP(moe_combine, MoeCombine)
QIAO_OP(add_rms_norm, AddRmsNorm)
QIAO_OP(layer_norm, LayerNorm)
QIAO_OP(rope, Rope)
QIAO_OP(gated_activation, GatedActivation)
QIAO_OP(kv_write, KvWrite)
QIAO_OP(attention_paged, AttentionPaged)
QIAO_OP(attention_varlen, AttentionVarlen)
QIAO_OP(sample, Sample)
QIAO_OP(feed_drawn, FeedDrawn)
QIAO_OP(embedding_bag, EmbeddingBag)
QIAO_OP(vector_search, VectorSearch)
QIAO_OP(gather_backward, GatherBackward)
QIAO_OP(embedding_bag_backward, EmbeddingBagBackward)
QIAO_OP(linear_backward, LinearBackward)
QIAO_OP(grouped_linear_backward, GroupedLinearBackward)
QIAO_OP(moe_route_backward, MoeRouteBackward)
QIAO_OP(moe_permute_backward, MoePermuteBackward)
QIAO_OP(moe_combine_backward, MoeCombineBackward)
QIAO_OP(add_rms_norm_backward, AddRmsNormBackward)
QIAO_OP(gated_activation_backward, GatedActivationBackward)
QIAO_OP(attention_varlen_backward, AttentionVarlenBackward)
QIAO_OP(token_logprob, TokenLogprob)
QIAO_OP(token_logprob_backward, TokenLogprobBackward)
QIAO_OP(dropout, Dropout)
QIAO_OP(sum_of_squares, SumOfSquares)
QIAO_OP(accumulate, Accumulate)
QIAO_OP(adamw, AdamW)
QIAO_OP(muon, Muon)
#undef QIAO_OP

// In the workspace: normed rows, what is gated, the product's own.
template <class Op>
struct Backend::Around {
  Op product;  // with neither rows of its own nor, where it is gated apart, a y
  bool norms = false, gates = false;
  int64_t normed_bytes = 0, gated_bytes = 0;
};

template <class Op>
Backend::Around<Op> Backend::around(const Op& op) const {
  constexpr int64_t kRow = sizeof(float), kAlignment = 64;
  const auto up = [](int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; };
  const int64_t tokens = op.x.shape[0];
  Around<Op> around{op};
  if constexpr (requires { op.norm; }) {
    if (op.norm.present && !norms(op)) {
      around.norms = true;
      around.normed_bytes = up(tokens * op.weight->columns() * kRow);
      around.product.norm = {};
    }
  }
  if (op.gated) {
    around.gates = tokens > gates_to(op);
    if (around.gates) {
      around.gated_bytes = up(tokens * op.weight->rows() * kRow);
      around.product.gated = false, around.product.activation = Activation::kNone;
    }
  }
  return around;
}

template <class Op, class Run>
void Backend::run_around(std::string_view name, const Op& op, Run run) {
  op.check();
  check_workspace(*this, name, op);
  Around<Op> around = this->around(op);
  Op& product = around.product;
  auto* memory = op.workspace.template as<std::byte>();
  const int64_t tokens = op.x.shape[0], before = around.normed_bytes + around.gated_bytes;
  if (before > 0) product.workspace = op.workspace.slice(before, op.workspace.elements() - before);
  if constexpr (requires { op.norm; }) {
    if (around.norms) {
      product.x = Tensor(memory, DType::kF32, {tokens, op.weight->columns()});
      add_rms_norm(op.norm.apart(op.x, product.x));
    }
  }
  if (around.gates) {
    product.y = Tensor(memory + around.normed_bytes, DType::kF32, {tokens, op.weight->rows()});
  }
  watched(name, product, [&] { run(product); });
  if (around.gates) gated_activation({product.y, op.activation, op.y});
}

// Of the op's kernel as it is asked for: a call with fewer rows may gate itself.
size_t Backend::workspace_bytes(const Linear& op) const {
  const Around<Linear> around = this->around(op);
  return static_cast<size_t>(around.normed_bytes + around.gated_bytes) + kernel_workspace_bytes(op);
}

size_t Backend::workspace_bytes(const GroupedLinear& op) const {
  const Around<GroupedLinear> around = this->around(op);
  return static_cast<size_t>(around.gated_bytes) + kernel_workspace_bytes(op);
}

void Backend::linear(const Linear& op) {
  run_around("linear", op, [&](const Linear& product) { do_linear(product); });
}

void Backend::grouped_linear(const GroupedLinear& op) {
  run_around("grouped_linear", op, [&](const GroupedLinear& product) { do_grouped_linear(product); });
}

void Backend::do_linear(const Linear&) {
  throw_error(ErrorKind::kUnsupported, "op linear: chip {} has no kernel for it", chip());
}

void Backend::do_grouped_linear(const GroupedLinear&) {
  throw_error(ErrorKind::kUnsupported, "op grouped_linear: chip {} has no kernel for it", chip());
}

void Backend::rope_kv_write(const RopeKvWrite& op) {
  op.check();
  watched("rope_kv_write", op, [&] { do_rope_kv_write(op); });
}

void Backend::do_rope_kv_write(const RopeKvWrite& op) {
  const auto norm_heads = [&] {
    if (op.q_norm.present) do_add_rms_norm(op.q_norm.apart(op.q, op.q));
    if (op.k_norm.present) do_add_rms_norm(op.k_norm.apart(op.k, op.k));
  };
  if (!op.norms_after) norm_heads();
  if (op.rotates()) do_rope(op.rope());
  if (op.norms_after) norm_heads();
  do_kv_write(op.kv_write());
}

size_t Backend::workspace_bytes(const TokenLoss& op) const {
  return std::max(workspace_bytes(op.forward()), workspace_bytes(op.backward()));
}

void Backend::token_loss(const TokenLoss& op) {
  op.check();
  check_workspace(*this, "token_loss", op);
  watched("token_loss", op, [&] { do_token_loss(op); });
}

void Backend::do_token_loss(const TokenLoss& op) {
  do_token_logprob(op.forward());
  do_token_logprob_backward(op.backward());
}

}  // namespace qiao
