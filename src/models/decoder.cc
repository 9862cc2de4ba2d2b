#include "models/decoder.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>

#include "backend/recordings.h"
#include "base/error.h"
#include "base/fingerprint.h"
#include "models/cache_pages.h"
#include "models/decoder_checks.h"
#include "models/decoder_layers.h"
#include "models/decoder_ranks.h"
#include "models/decoder_work.h"
#include "models/lora.h"
#include "models/weights.h"

namespace qiao {
namespace {

uint64_t next_serial() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

}  // namespace

KvCache::KvCache(Backend& backend, const DecoderConfig& config, int64_t pages, int64_t page_tokens,
                 DType dtype, int64_t sliding_pages)
    : pages_(pages), page_tokens_(page_tokens), sliding_pages_(sliding_pages), serial_(next_serial()) {
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    slides_.push_back(sliding_pages > 0 && config.layer_slides[static_cast<size_t>(layer)]);
    layers_.push_back(backend.make_kv_pages({slides_.back() ? sliding_pages : pages, page_tokens,
                                             config.num_key_value_heads, config.head_dim, dtype}));
  }
}

KvCache::PageBytes KvCache::bytes_per_page(Backend& backend, const DecoderConfig& config, int64_t page_tokens,
                                           DType dtype) {
  if (const int64_t step = kv_row_step(dtype); config.head_dim % step != 0) {
    throw_error(
        ErrorKind::kInvalidInput,
        "keys and values of {} numbers a head cannot be kept in {}, whose rows are multiples of {}; use f16, "
        "bf16 or f32 (--kv-type)",
        config.head_dim, traits(dtype).name, step);
  }
  // Of two and of one: chips pad rows, each in its way.
  const auto bytes_of = [&](int64_t pages) -> uint64_t {
    return backend.make_kv_pages({pages, page_tokens, config.num_key_value_heads, config.head_dim, dtype})
        ->bytes();
  };
  const uint64_t layer_bytes = bytes_of(2) - bytes_of(1);
  PageBytes bytes;
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer)
    (config.layer_slides[static_cast<size_t>(layer)] ? bytes.sliding : bytes.full) += layer_bytes;
  return bytes;
}

struct Decoder::Parts {
  DecoderConfig config, whole;  // of this rank, and of the model
  Backend* backend = nullptr;
  const Family* family = nullptr;
  bool gguf = false;
  DecoderWeights weights;
  int32_t adapters = 0;
  std::shared_ptr<DecoderRanks> ranks;  // null: one process
  Collectives* trainers = nullptr;
};

namespace {

// A step's indices, all in one block: filled on the host, copied to the chip in one go.
class IndexBlock {
 public:
  IndexBlock(Backend& backend, const Decoder::Limits& limits, int64_t tables)
      : host_(count(limits, tables)), device_(backend.allocate(host_.size() * sizeof(int32_t))) {}

  static size_t count(const Decoder::Limits& limits, int64_t tables) {
    return static_cast<size_t>((3 + tables) * limits.tokens + 2 * limits.sequences + 1 + limits.outputs +
                               tables * limits.sequences * limits.pages_per_sequence);
  }
  void clear() { used_ = 0; }
  Tensor add(std::span<const int32_t> values) {
    QIAO_ASSERT(values.size() <= host_.size() - used_);
    int32_t* place = static_cast<int32_t*>(device_.data()) + used_;
    if (!values.empty()) std::memcpy(host_.data() + used_, values.data(), values.size_bytes());
    used_ += values.size();
    return Tensor(place, DType::kI32, {static_cast<int64_t>(values.size())});
  }
  void upload(Backend& backend) { backend.upload(device_.data(), host_.data(), used_ * sizeof(int32_t)); }
  size_t bytes() const { return device_.bytes(); }

 private:
  std::vector<int32_t> host_;
  Buffer device_;
  size_t used_ = 0;
};

// All that a step's ops follow from, beside what its workspace fixes.
struct StepKey {
  uint64_t cache = 0;                             // KvCache::serial
  int64_t sequences = 0, pages = 0, outputs = 0;  // a token of each sequence, M of its page table, O
  bool want_logits = false;
  auto operator<=>(const StepKey&) const =
      default;  // NOLINT(modernize-use-nullptr): it takes the default for a 0
};

class StepMemory final : public Decoder::Workspace {
 public:
  StepMemory(Backend& backend, const Decoder::Limits& step_limits, int64_t tables, size_t scratch_bytes)
      : limits(step_limits), indices(backend, step_limits, tables), scratch(backend.allocate(scratch_bytes)) {
    token_adapters.reserve(static_cast<size_t>(limits.sequences));
    output_adapters.reserve(static_cast<size_t>(limits.sequences));
  }
  ~StepMemory() override {
    if (ranks) ranks->drop(number);
  }
  size_t bytes() const override { return indices.bytes() + scratch.bytes(); }

  Decoder::Limits limits;
  IndexBlock indices;
  Buffer scratch;
  Recordings<StepKey, Decoder::Outputs> recordings;
  std::vector<nn::AdapterRows> token_adapters, output_adapters;  // of the step
  std::shared_ptr<DecoderRanks> ranks;                           // where this one leads
  int64_t number = 0;                                            // by which the others know it
};

struct StepTensors {
  Tensor tokens;
  nn::StepIndices step, sliding;  // by group of layers
  Tensor output_rows;             // [O], or absent where every row is wanted
  Tensor from_drawn;              // [T], or absent
  int64_t outputs = 0;
  std::span<const nn::AdapterRows> token_adapters, output_adapters;  // which rows adapters change
};

// `rows` of sequence after sequence, neighbours of one adapter together.
void add_adapter_rows(int32_t adapter, int64_t first, int64_t count, std::vector<nn::AdapterRows>& rows) {
  if (adapter < 0 || count == 0) return;
  if (!rows.empty() && rows.back().adapter == adapter && rows.back().first + rows.back().count == first) {
    rows.back().count += count;
  } else {
    rows.push_back({adapter, first, count});
  }
}

void place_adapters(const StepBatch& batch, StepMemory& memory) {
  memory.token_adapters.clear();
  memory.output_adapters.clear();
  size_t output = 0;
  for (size_t s = 0; s < batch.adapters.size(); ++s) {
    const int32_t begin = batch.query_starts[s], end = batch.query_starts[s + 1];
    add_adapter_rows(batch.adapters[s], begin, end - begin, memory.token_adapters);
    const size_t first = output;
    while (output < batch.output_rows.size() && batch.output_rows[output] < end) ++output;
    add_adapter_rows(batch.adapters[s], static_cast<int64_t>(first), static_cast<int64_t>(output - first),
                     memory.output_adapters);
  }
}

StepTensors place_step(const StepBatch& batch, StepMemory& memory) {
  IndexBlock& indices = memory.indices;
  indices.clear();
  StepTensors step;
  const auto sequences = static_cast<int64_t>(batch.lengths.size());
  step.tokens = indices.add(batch.tokens);
  step.step.positions = indices.add(batch.positions);
  step.step.slots = indices.add(batch.slots);
  const Tensor table = indices.add(batch.page_table);
  step.step.page_table = Tensor(table.data, DType::kI32, {sequences, table.shape[0] / sequences});
  step.step.lengths = indices.add(batch.lengths);
  step.step.query_starts = indices.add(batch.query_starts);
  if (!batch.sliding_slots.empty()) {
    step.sliding = step.step;
    step.sliding.slots = indices.add(batch.sliding_slots);
    step.sliding.page_table.data = indices.add(batch.sliding_table).data;
  }
  step.outputs = static_cast<int64_t>(batch.output_rows.size());
  if (batch.output_rows.size() != batch.tokens.size()) step.output_rows = indices.add(batch.output_rows);
  // The last: recorded steps find the others where they were.
  if (!batch.from_drawn.empty()) step.from_drawn = indices.add(batch.from_drawn);
  place_adapters(batch, memory);
  step.token_adapters = memory.token_adapters;
  step.output_adapters = memory.output_adapters;
  return step;
}

// The step of the largest size, for measuring: shapes without memory. With rows of an adapter, if there is
// one.
StepTensors largest_step(const Decoder::Limits& limits, int64_t outputs, bool with_adapters) {
  alignas(64) static int32_t nothing = 0;
  static constexpr nn::AdapterRows kRows{0, 0, 1};
  const auto shape = [](std::initializer_list<int64_t> dimensions) {
    return Tensor(&nothing, DType::kI32, dimensions);
  };
  StepTensors step;
  step.tokens = shape({limits.tokens});
  step.step = {shape({limits.tokens}), shape({limits.tokens}),
               shape({limits.sequences, limits.pages_per_sequence}), shape({limits.sequences}),
               shape({limits.sequences + 1})};
  step.sliding = step.step;
  step.outputs = outputs;
  step.output_rows = shape({outputs});
  if (with_adapters) step.token_adapters = step.output_adapters = {&kRows, 1};
  return step;
}

Tensor gather_rows(nn::Context& context, const Tensor& x, const Tensor& rows) {
  GatherRows op;
  op.x = x;
  op.rows = rows;
  op.out = context.take(DType::kF32, {rows.shape[0], x.shape[1]});
  context.gather_rows(op);
  return op.out;
}

// Logits of all rows of `hidden`. Of several ranks each computes its own columns, and the first has them all;
// or, where the head is whole on each, computes them all.
void compute_logits(nn::Context& context, const DecoderWeights& weights, const DecoderConfig& config,
                    Collectives* ranks, const Tensor& hidden, const Tensor& logits) {
  const float cap = config.final_logit_softcapping;
  const Activation activation = cap > 0 ? Activation::kSoftCap : Activation::kNone;
  const bool leads = ranks == nullptr || ranks->rank() == 0;
  const bool spread = ranks != nullptr && !weights.head_rows.empty();
  if (!leads && !spread) return;
  const Tensor own = spread && leads ? logits.narrow(1, 0, weights.head_rows.front()) : logits;
  weights.head.forward(context, hidden, own, {}, activation, cap);
  if (spread && !context.measuring())
    ranks->gather_columns(own, weights.head_rows, leads ? logits : Tensor());
}

Decoder::Outputs run(nn::Context& context, const DecoderWeights& weights, const DecoderConfig& config,
                     Collectives* ranks, const StepTensors& step, KvCache& cache, bool want_logits) {
  Decoder::Outputs outputs;
  const int64_t tokens = step.tokens.shape[0], width = config.hidden_size;
  const bool follows = ranks != nullptr && ranks->rank() > 0;
  const int64_t vocabulary = follows ? weights.head.rows() : config.vocabulary_size;
  if (step.outputs > 0) {
    outputs.hidden = context.take(DType::kF32, {step.outputs, width});
    if (want_logits && (!follows || !weights.head_rows.empty()))
      outputs.logits = context.take(DType::kF32, {step.outputs, vocabulary});
  }
  context.set_collectives(ranks);
  context.set_adapter_rows(step.token_adapters);
  LayerStream stream = {context.take(DType::kF32, {tokens, width}), {}};
  if (!adds_at_once(config, ranks, !step.token_adapters.empty()))
    stream.update = context.take(DType::kF32, {tokens, width});
  weights.embedding.forward(context, step.tokens, stream.residual);
  for (const DecoderLayer& layer : weights.layers) {
    const int64_t number = &layer - weights.layers.data();
    const bool is_last = &layer == &weights.layers.back();
    KvPages& pages = cache.layer(number);
    const nn::StepIndices& indices = cache.slides(number) ? step.sliding : step.step;
    const AttentionInput x = enter_attention(context, layer, number > 0, &stream);
    const nn::Context::Scope scope(context);
    const Tensor q = layer.attention.keep(context, x.rows, indices, pages, x.norm);
    if (is_last && step.outputs == 0) return outputs;
    Tensor heads = layer.attention.attend(context, q, indices, pages);
    if (is_last && step.output_rows.present()) {
      // Past the last keys and values only the wanted rows matter.
      heads = gather_rows(context, heads, step.output_rows);
      stream.residual = gather_rows(context, stream.residual, step.output_rows);
      if (stream.update.present()) stream.update = stream.update.slice(0, step.outputs);
      context.set_adapter_rows(step.output_adapters);
    }
    leave_attention(context, layer, config, heads, stream, stream);
    if (is_last && stream.update.present()) {
      weights.final_norm.forward(context, stream.update, outputs.hidden, stream.residual);
    } else if (is_last) {
      weights.final_norm.forward(context, stream.residual, outputs.hidden);
    }
  }
  if (want_logits) compute_logits(context, weights, config, ranks, outputs.hidden, outputs.logits);
  if (follows) outputs.logits = {};
  return outputs;
}

}  // namespace

Decoder::Decoder(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Decoder::~Decoder() {
  if (parts_->ranks && parts_->ranks->leads()) parts_->ranks->end();
}
const DecoderConfig& Decoder::config() const { return parts_->config; }
const DecoderWeights& Decoder::weights() const { return parts_->weights; }
Backend& Decoder::backend() const { return *parts_->backend; }
uint64_t Decoder::weight_bytes() const { return parts_->weights.bytes; }
DecoderWork Decoder::work() const { return decoder_work(parts_->weights); }
DType Decoder::packed_kv_dtype() const {
  const std::vector<DecoderLayer>& layers = weights().layers;
  const bool in_bf16 = std::any_of(layers.begin(), layers.end(), [](const DecoderLayer& layer) {
    return layer.attention.compute == Compute::kBF16;
  });
  return in_bf16 && backend().rounds_packed_attention() ? DType::kBF16 : DType::kF32;
}
int Decoder::ranks() const { return parts_->ranks ? parts_->ranks->size() : 1; }
Collectives* Decoder::trainers() const { return parts_->trainers; }

void Decoder::agree(const std::string& what) const {
  if (parts_->ranks) parts_->ranks->agree(what);
}

void Decoder::follow() const {
  QIAO_ASSERT(parts_->ranks && !parts_->ranks->leads());
  parts_->ranks->follow(*this);
}

void Decoder::lead() const {
  if (parts_->ranks) parts_->ranks->lead();
}

void Decoder::let_go() const {
  if (parts_->ranks) parts_->ranks->end();
}

uint64_t Decoder::free_bytes() const {
  return parts_->ranks && parts_->ranks->leads() ? parts_->ranks->free_bytes()
                                                 : backend().describe().free_bytes;
}

namespace {

// Of the configuration and of pages spread over the files: two trainings of one model have files of one size.
uint64_t fingerprint(const ModelFiles& files) {
  constexpr size_t kPages = 64, kPageBytes = 4096;
  Fingerprint print;
  if (files.kind() == ModelFiles::Kind::kHuggingFace) {
    const std::string config = dump_json(files.config());
    print.add(config.data(), config.size());
  }
  for (const MappedFile& file : files.files()) {
    const size_t size = file.size();
    print.add(&size, sizeof size);
    for (size_t i = 0; i < kPages; ++i) {
      const size_t first = size / kPages * i;
      print.add(file.bytes().data() + first, std::min(kPageBytes, size - first));
    }
  }
  return print.value();
}

// What all ranks must have alike, for people too.
std::string what_runs(const ModelFiles& files, const DecoderOptions& options) {
  constexpr std::array<std::string_view, 4> kPolicies = {"auto", "f32", "bf16", "q8"};
  return fmt::format("{} of contents {:016x}, computing {}{}{}", files.path().filename().string(),
                     fingerprint(files), kPolicies[static_cast<size_t>(options.compute)],
                     options.quantize_f8 ? ", quantized to fp8" : "",
                     options.context > 0 ? fmt::format(", with a context of {}", options.context) : "");
}

}  // namespace

std::unique_ptr<Decoder> Decoder::load(const ModelFiles& files, Backend& backend,
                                       const DecoderOptions& options) {
  auto parts = std::make_unique<Parts>();
  parts->config = read_decoder_config(files, options.context);
  parts->family = &find_family(ConfigReader(files));
  parts->gguf = files.kind() == ModelFiles::Kind::kGguf;
  parts->backend = &backend;
  parts->whole = parts->config;
  parts->weights = load_weights(files, backend, parts->config, options);
  const nn::AttentionLayer& attention = parts->weights.layers.front().attention;
  parts->config.num_attention_heads = attention.heads;  // this rank's
  parts->config.num_key_value_heads = attention.kv_heads;
  if (options.trainers != nullptr && options.trainers->size() > 1) parts->trainers = options.trainers;
  if (options.ranks != nullptr && options.ranks->size() > 1) {
    parts->ranks = std::make_shared<DecoderRanks>(*options.ranks, backend, parts->trainers);
    if (parts->trainers == nullptr) parts->ranks->agree(what_runs(files, options));
  }
  return std::unique_ptr<Decoder>(new Decoder(std::move(parts)));
}

int32_t Decoder::add_adapter(const LoraFiles& files, const LoraLaidOut& laid_out) {
  const LoraBase base = {parts_->whole, *parts_->family, parts_->gguf};
  parts_->weights.bytes +=
      add_lora(files, base, *parts_->backend, parts_->adapters, parts_->weights, laid_out);
  return parts_->adapters++;
}

int32_t Decoder::adapters() const { return parts_->adapters; }

int64_t Decoder::page_bytes(const KvCache& cache, bool sliding) const {
  int64_t bytes = own_page_bytes(cache, sliding);
  if (!parts_->ranks) return bytes;
  for (const int64_t theirs : parts_->ranks->page_bytes(cache, sliding)) bytes += theirs;
  return bytes;
}

void Decoder::export_page(const KvCache& cache, int64_t page, bool sliding,
                          std::span<std::byte> bytes) const {
  const auto own = static_cast<size_t>(own_page_bytes(cache, sliding));
  export_own_page(backend(), cache, page, sliding, bytes.first(own));
  if (parts_->ranks) parts_->ranks->export_page(cache, page, sliding, bytes.subspan(own));
}

void Decoder::import_page(KvCache& cache, int64_t page, bool sliding,
                          std::span<const std::byte> bytes) const {
  const auto own = static_cast<size_t>(own_page_bytes(cache, sliding));
  import_own_page(backend(), cache, page, sliding, bytes.first(own));
  if (parts_->ranks) parts_->ranks->import_page(cache, page, sliding, bytes.subspan(own));
}

namespace {

Decoder::Limits complete(const Decoder::Limits& wanted) {
  Decoder::Limits limits = wanted;
  if (limits.logits < 0) limits.logits = limits.outputs;
  if (limits.tokens < 1 || limits.sequences < 1 || limits.pages_per_sequence < 1 || limits.outputs < 0 ||
      limits.logits > limits.outputs) {
    throw_error(ErrorKind::kInvalidInput,
                "workspace of {} tokens, {} sequences of {} pages, {} outputs and {} logits", limits.tokens,
                limits.sequences, limits.pages_per_sequence, limits.outputs, limits.logits);
  }
  return limits;
}

int64_t tables_of(const KvCache& cache) { return cache.sliding_pages() > 0 ? 2 : 1; }

// Of a step's activations, with and without rows of adapters where there are any.
size_t scratch_bytes(Backend& backend, const DecoderWeights& weights, const DecoderConfig& config,
                     Collectives* ranks, const Decoder::Limits& limits, const KvCache& cache,
                     bool has_adapters) {
  // Measuring reads the pages' shapes only.
  auto& pages = const_cast<KvCache&>(cache);
  const auto peak = [&](int64_t outputs, bool want_logits, bool with_adapters) {
    nn::Context measure(backend);
    run(measure, weights, config, ranks, largest_step(limits, outputs, with_adapters), pages, want_logits);
    return measure.peak();
  };
  size_t bytes = 0;
  for (const bool with_adapters : {false, has_adapters}) {
    bytes = std::max(
        {bytes, peak(limits.outputs, false, with_adapters), peak(limits.logits, true, with_adapters)});
  }
  return bytes;
}

}  // namespace

size_t Decoder::workspace_bytes(const Limits& wanted, const KvCache& cache) const {
  const Limits limits = complete(wanted);
  Collectives* const ranks = parts_->ranks ? &parts_->ranks->collectives() : nullptr;
  return scratch_bytes(backend(), parts_->weights, config(), ranks, limits, cache, adapters() > 0) +
         IndexBlock::count(limits, tables_of(cache)) * sizeof(int32_t);
}

std::unique_ptr<Decoder::Workspace> Decoder::make_workspace(const Limits& wanted,
                                                            const KvCache& cache) const {
  const Limits limits = complete(wanted);
  Collectives* const ranks = parts_->ranks ? &parts_->ranks->collectives() : nullptr;
  auto memory = std::make_unique<StepMemory>(
      backend(), limits, tables_of(cache),
      scratch_bytes(backend(), parts_->weights, config(), ranks, limits, cache, adapters() > 0));
  if (parts_->ranks && parts_->ranks->leads()) {
    memory->number = parts_->ranks->make(cache, limits);
    memory->ranks = parts_->ranks;
  }
  return memory;
}

Decoder::Outputs Decoder::forward(const StepBatch& batch, KvCache& cache, Workspace& workspace,
                                  bool want_logits) const {
  QIAO_ASSERT(parts_->trainers == nullptr || parts_->ranks);
  auto& memory = static_cast<StepMemory&>(workspace);
  check_step(batch, cache, config(), memory.limits, want_logits);
  check_adapters(batch, adapters());
  if (!parts_->ranks) return compute(batch, cache, memory, want_logits);
  if (memory.ranks) memory.ranks->start_step(memory.number, batch, want_logits);
  try {
    return compute(batch, cache, memory, want_logits);
  } catch (const std::exception& error) {
    parts_->ranks->fail(error.what());
  }
}

Decoder::Outputs Decoder::compute(const StepBatch& batch, KvCache& cache, Workspace& workspace,
                                  bool want_logits) const {
  auto& memory = static_cast<StepMemory&>(workspace);
  Collectives* const ranks = parts_->ranks ? &parts_->ranks->collectives() : nullptr;
  const StepTensors step = place_step(batch, memory);
  memory.indices.upload(backend());
  if (step.from_drawn.present()) backend().feed_drawn({batch.drawn_ids, step.from_drawn, step.tokens});
  if (ranks != nullptr && (step.from_drawn.present() || batch.takes_tokens)) {
    const Tensor bits(step.tokens.data, DType::kF32, {step.tokens.shape[0]});  // copied as they are
    ranks->broadcast(bits, 0, bits);
  }
  const auto run_once = [&] {
    nn::Context context(backend(), memory.scratch.data(), memory.scratch.bytes());
    return run(context, parts_->weights, config(), ranks, step, cache, want_logits);
  };
  // Decoding alone comes again and again in the same shapes; and whose rows an adapter changes is no shape.
  const bool decodes = batch.tokens.size() == batch.lengths.size() && step.token_adapters.empty();
  if (!decodes || (ranks != nullptr && !ranks->can_be_repeated())) return run_once();
  const int64_t sequences = step.step.lengths.shape[0];
  return memory.recordings.run(
      backend(), {cache.serial(), sequences, step.step.page_table.shape[1], step.outputs, want_logits},
      std::ref(run_once));
}

}  // namespace qiao
