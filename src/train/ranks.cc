#include "train/ranks.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <sstream>

#include "base/error.h"
#include "parallel/gather_texts.h"

namespace qiao::train {
namespace {

// So many members, the first and every step-th behind it.
std::vector<int> every(int step, int first, int count) {
  std::vector<int> members;
  for (int i = 0; i < count; ++i) members.push_back(first + i * step);
  return members;
}

// The lines of settings, "key = value" each, that all processes have alike.
std::set<std::string> common_lines(const std::string& settings) {
  std::set<std::string> lines;
  std::istringstream stream(settings);
  for (std::string line; std::getline(stream, line);) {
    const std::string_view key = std::string_view(line).substr(0, line.find(' '));
    if (key != "device" && key != "threads" && key != "log-every" && key != "rank-timeout")
      lines.insert(std::move(line));
  }
  return lines;
}

// The first line that only `one` has; empty: none.
std::string only_in(const std::set<std::string>& one, const std::set<std::string>& other) {
  for (const std::string& line : one)
    if (!other.contains(line)) return line;
  return "";
}

}  // namespace

void agree_on_settings(Communicator& communicator, const std::string& settings) {
  const std::vector<std::string> texts = gather_texts(communicator, settings);
  const std::set<std::string> own = common_lines(settings);
  for (size_t other = 1; other < texts.size(); ++other) {
    const std::set<std::string> theirs = common_lines(texts[other]);
    const std::string line = only_in(theirs, own), mine = only_in(own, theirs);
    if (line.empty() && mine.empty()) continue;
    throw_error(ErrorKind::kInvalidInput,
                "{} trains with {}, and {} with {}: start all processes with the same settings",
                communicator.name(static_cast<int>(other)), line.empty() ? "no such setting" : line,
                communicator.name(0), mine.empty() ? "no such setting" : mine);
  }
}

std::vector<int64_t> deal_out(std::span<const int64_t> counts, int64_t shares) {
  std::vector<size_t> order(counts.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, [&](size_t a, size_t b) { return counts[a] > counts[b]; });
  std::vector<int64_t> owners(counts.size()), loads(static_cast<size_t>(shares));
  for (const size_t tensor : order) {
    const auto least = std::ranges::min_element(loads);
    owners[tensor] = least - loads.begin();
    *least += counts[tensor];
  }
  return owners;
}

Ranks::Ranks(Communicator& communicator, int64_t virtual_ranks, int64_t tensor_parallel)
    : communicator_(communicator), shares_(virtual_ranks) {
  const int size = communicator.size(), rank = communicator.rank(),
            of_group = static_cast<int>(tensor_parallel);
  if (size % of_group != 0) {
    throw_error(ErrorKind::kInvalidInput,
                "--tensor-parallel is {}, and {} {} started: a number of processes that it divides was "
                "expected (mpirun -np {} qiao train …){}",
                of_group, size, size == 1 ? "process was" : "processes were", of_group,
                size == 1 ? "; in one process --tensor-parallel 1 does" : "");
  }
  const int groups = size / of_group;
  if (virtual_ranks % groups != 0) {
    throw_error(
        ErrorKind::kInvalidInput,
        "{} {} were started; 1, 2 or 4 were expected, to which {} virtual ranks can be dealt out", groups,
        of_group == 1 ? "processes" : fmt::format("groups of {} processes (--tensor-parallel)", of_group),
        virtual_ranks);
  }
  group_ = make_group_communicator(communicator, every(1, rank / of_group * of_group, of_group));
  data_ = make_group_communicator(communicator, every(of_group, rank % of_group, groups));
}

void Ranks::connect(Collectives* group, Collectives* data) {
  QIAO_ASSERT((group != nullptr || group_->size() == 1) && (data != nullptr || data_->size() == 1));
  group_sums_ = group;
  data_sums_ = data;
}

void Ranks::share(Parameters& parameters, const WholeStepCost& cost) {
  std::vector<int64_t> counts;
  for (const Parameters::Named& tensor : parameters.tensors())
    counts.push_back(tensor.runs * tensor.part.whole_count());
  owners_ = deal_out(counts, shares_);
  std::vector<bool> here;
  for (const int64_t owner : owners_) here.push_back(rank_of(owner) == data_->rank());
  if (group_->size() > 1) agree_on_parts(parameters, cost);
  parameters.share(std::move(here), own_shares());
}

// Every rank of the group hears which parts the others have.
void Ranks::agree_on_parts(Parameters& parameters, const WholeStepCost& cost) {
  std::vector<int64_t> own;
  for (const Parameters::Named& tensor : parameters.tensors()) {
    own.insert(own.end(),
               {tensor.runs, tensor.part.whole_rows, tensor.part.whole_columns, tensor.part.columns.first,
                tensor.part.columns.count, std::ssize(tensor.part.rows)});
    for (const Range& rows : tensor.part.rows) own.insert(own.end(), {rows.first, rows.count});
  }
  const size_t tensors = parameters.tensors().size();
  for (int rank = 0; rank < group_->size(); ++rank) {
    std::vector<int64_t> numbers = own;
    auto length = std::ssize(numbers);
    for (int other = 0; other < group_->size(); ++other) {
      if (other == rank) continue;
      if (group_->rank() == rank) {
        group_->send_values(other, std::span<const std::ptrdiff_t>(&length, 1));
        group_->send_values(other, std::span<const int64_t>(numbers));
      } else if (group_->rank() == other) {
        group_->receive_values(rank, std::span(&length, 1));
        numbers.resize(static_cast<size_t>(length));
        group_->receive_values(rank, std::span(numbers));
      }
    }
    auto next = numbers.begin();
    parts_.emplace_back(tensors);
    for (OfGroup& of : parts_.back()) {
      of.runs = *next++;
      of.part.whole_rows = *next++;
      of.part.whole_columns = *next++;
      of.part.columns.first = *next++;
      of.part.columns.count = *next++;
      for (int64_t left = *next++; left > 0; --left, next += 2) of.part.rows.push_back({next[0], next[1]});
    }
  }
  const std::vector<bool> joined = deal_out_in_group(parameters, cost);
  std::vector<std::vector<Range>> counted;
  std::vector<bool> kept;
  for (size_t tensor = 0; tensor < tensors; ++tensor) {
    std::vector<const TensorPart*> until;
    bool meets = false;
    const std::optional<int> keeper = this->keeper(tensor);
    kept.push_back(keeper.value_or(group_->rank()) == group_->rank());
    for (int rank = 0; rank < group_->size(); ++rank) {
      OfGroup& of = parts_[static_cast<size_t>(rank)][tensor];
      until.push_back(&of.part);
      const std::vector<Range> numbers = counted_numbers(until);
      of.counts = !numbers.empty();
      int64_t count = 0;
      for (const Range& range : numbers) count += range.count;
      meets = meets || count < of.part.count();
      if (rank == group_->rank()) counted.push_back(numbers);
    }
    if (keeper && !joined[tensor]) {
      counted.back().clear();
      if (kept.back()) counted.back().push_back({0, until.front()->count()});
    }
    meets_.push_back(meets);
  }
  parameters.count_once(std::move(counted), kept, joined);
}

// Which are joined. Steps that take all of a tensor are the dear ones: those are dealt out first, by what
// they cost, then the other matrices that are whole on all by what their states take; of each process of
// data().
std::vector<bool> Ranks::deal_out_in_group(const Parameters& parameters, const WholeStepCost& cost) {
  const size_t tensors = parameters.tensors().size();
  keepers_.assign(tensors, -1);
  std::vector<bool> joined(tensors);
  std::vector<int64_t> costs(tensors);
  for (size_t i = 0; i < tensors; ++i) {
    const Parameters::Named& tensor = parameters.tensors()[i];
    const auto all = [&](auto is) {
      return std::ranges::all_of(parts_, [&](const auto& rank) { return is(rank[i].part); });
    };
    const bool is_whole_on_all = all([](const TensorPart& part) { return part.is_whole(); });
    costs[i] = cost(tensor);
    joined[i] =
        costs[i] > 0 && !all([](const TensorPart& part) { return part.is_whole() || part.count() == 0; });
    if (joined[i] || (is_whole_on_all && tensor.weight != nullptr)) keepers_[i] = 0;
  }
  for (int rank = 0; rank < data_->size(); ++rank) {
    for (const bool is_dear : {true, false}) {
      std::vector<size_t> dealt;
      std::vector<int64_t> weights;
      for (size_t i = 0; i < tensors; ++i) {
        if (keepers_[i] < 0 || rank_of(owners_[i]) != rank || (costs[i] > 0) != is_dear) continue;
        dealt.push_back(i);
        const Parameters::Named& tensor = parameters.tensors()[i];
        weights.push_back(is_dear ? costs[i] : tensor.runs * tensor.part.whole_count());
      }
      const std::vector<int64_t> keepers = deal_out(weights, group_->size());
      for (size_t i = 0; i < dealt.size(); ++i) keepers_[dealt[i]] = static_cast<int>(keepers[i]);
    }
  }
  return joined;
}

void Ranks::agree(std::span<double> values, std::span<const int64_t> shares) const {
  if (values.empty()) return;
  agree_in_data(values, shares);
  if (!leads_group()) group_->receive_values(0, values);
  for (int other = 1; leads_group() && other < group_->size(); ++other)
    group_->send_values(other, std::span<const double>(values));
}

void Ranks::agree_in_data(std::span<double> values, std::span<const int64_t> shares) const {
  if (data_->size() == 1) return;
  if (data_->rank() > 0) {
    data_->send_values(0, std::span<const double>(values));
    data_->receive_values(0, values);
    return;
  }
  std::vector<double> theirs(values.size());
  for (int rank = 1; rank < data_->size(); ++rank) {
    data_->receive_values(rank, std::span(theirs));
    for (size_t i = 0; i < values.size(); ++i)
      if (rank_of(shares[i]) == rank) values[i] = theirs[i];
  }
  for (int rank = 1; rank < data_->size(); ++rank) data_->send_values(rank, std::span<const double>(values));
}

void Ranks::agree_by_share(std::span<double> values) const {
  const auto each = std::ssize(values) / shares_;
  std::vector<int64_t> shares(values.size());
  for (int64_t i = 0; i < std::ssize(values); ++i) shares[static_cast<size_t>(i)] = i / each;
  agree(values, shares);
}

bool Ranks::any(bool here) const {
  double heard = here ? 1.0 : 0.0;
  if (!leads_group()) group_->send_values(0, std::span<const double>(&heard, 1));
  for (int other = 1; leads_group() && other < group_->size(); ++other) {
    group_->receive_values(other, std::span(&heard, 1));
    here = here || heard != 0;
  }
  std::vector<double> values(static_cast<size_t>(shares_), here ? 1.0 : 0.0);
  agree_by_share(values);
  return std::ranges::any_of(values, [](double value) { return value != 0; });
}

double Ranks::fold(std::span<double> values) const {
  agree_by_share(values);
  return sum_of_shares(values);
}

// The shares of one process are in one gradient already, of all processes in the tree of Collectives.
void Ranks::reduce(Backend& backend, Parameters& parameters) const {
  for (size_t i = 0; i < owners_.size(); ++i) {
    const Parameters::Named& tensor = parameters.tensors()[i];
    if (tensor.count > 0 && data_->size() > 1) {
      for (int64_t run = 0; run < tensor.runs; ++run)
        data_sums_->reduce_sum(parameters.gradient(tensor, run), rank_of(owners_[i]));
    }
    if (group_->size() > 1 && tensor.is_summed && meets_[i] && tensor.is_here)
      sum_in_group(backend, parameters, i);
  }
}

// Where ranks have parts that meet, all of the tensor is summed, with 0 from who has not: x + 0 is x.
void Ranks::sum_in_group(Backend& backend, const Parameters& parameters, size_t index) const {
  const Parameters::Named& tensor = parameters.tensors()[index];
  for (int64_t run = 0; run < tensor.runs; ++run) {
    const Tensor own = parameters.gradient(tensor, run);
    if (tensor.part.is_whole()) {
      const std::optional<int> keeper = this->keeper(index);
      keeper ? group_sums_->reduce_sum(own, *keeper) : group_sums_->all_reduce_sum(own);
      continue;
    }
    const int64_t count = tensor.part.whole_count();
    const Buffer memory = backend.allocate(static_cast<size_t>(count) * sizeof(float));
    std::vector<float> part(static_cast<size_t>(own.elements())), whole(static_cast<size_t>(count));
    backend.download(part.data(), own.data, static_cast<size_t>(own.bytes()));
    put_part(tensor.part, 1, sizeof(float), std::as_bytes(std::span(part)),
             std::as_writable_bytes(std::span(whole)));
    backend.upload(memory.data(), whole.data(), memory.bytes());
    group_sums_->all_reduce_sum(Tensor(memory.data(), DType::kF32, {count}));
    backend.download(whole.data(), memory.data(), memory.bytes());
    take_part(tensor.part, 1, sizeof(float), std::as_bytes(std::span(whole)),
              std::as_writable_bytes(std::span(part)));
    backend.upload(own.data, part.data(), static_cast<size_t>(own.bytes()));
  }
}

std::vector<double> Ranks::gradient_squares(Parameters& parameters) const {
  std::vector<double> squares = parameters.gradient_squares(), theirs(squares.size());
  if (!leads_group()) group_->send_values(0, std::span<const double>(squares));
  for (int other = 1; leads_group() && other < group_->size(); ++other) {
    group_->receive_values(other, std::span(theirs));
    for (size_t i = 0; i < squares.size(); ++i) squares[i] += theirs[i];
  }
  agree(squares, owners_);
  return squares;
}

void Ranks::publish(Parameters& parameters) const {
  for (size_t i = 0; i < owners_.size(); ++i) {
    const Parameters::Named& tensor = parameters.tensors()[i];
    const std::optional<int> keeper = tensor.is_joined ? std::nullopt : this->keeper(i);
    for (int64_t run = 0; keeper && tensor.is_here && run < tensor.runs; ++run) {
      const Tensor master = parameters.master(tensor, run);
      group_sums_->broadcast(master, *keeper, master);
    }
  }
  if (data_->size() == 1) return parameters.rewrite();
  parameters.rewrite([&](size_t i, int64_t run, const Tensor& to) {
    const Parameters::Named& tensor = parameters.tensors()[i];
    data_sums_->broadcast(tensor.is_here ? parameters.master(tensor, run) : Tensor(), rank_of(owners_[i]),
                          to);
  });
}

void Ranks::gather(size_t tensor, size_t unit, std::span<const std::byte> own,
                   std::span<std::byte> whole) const {
  if (!leads_group()) {
    if (counts(group_->rank(), tensor)) group_->send(0, own);
    return;
  }
  if (part(0, tensor).is_whole()) {  // a block's scale is no number of the tensor
    std::ranges::copy(own, whole.begin());
    return;
  }
  if (part(0, tensor).count() > 0) put_part(part(0, tensor), of_group(0, tensor).runs, unit, own, whole);
  std::vector<std::byte> theirs;
  for (int rank = 1; rank < group_->size(); ++rank) {
    const auto& [part, runs, counts] = of_group(rank, tensor);
    if (!counts) continue;
    theirs.resize(static_cast<size_t>(runs * part.count()) * unit);
    group_->receive(rank, theirs);
    put_part(part, runs, unit, theirs, whole);
  }
}

void Ranks::hand_over(size_t tensor, std::span<const std::byte> own, std::span<std::byte> whole) const {
  const int keeper = keepers_[tensor];
  if (keeper == 0) {
    if (leads_group()) std::ranges::copy(own, whole.begin());
  } else if (leads_group()) {
    group_->receive(keeper, whole);
  } else if (group_->rank() == keeper) {
    group_->send(0, own);
  }
}

void Ranks::collect(std::span<std::string> texts) const {
  for (size_t share = 0; share < texts.size(); ++share) {
    const int rank = rank_of(static_cast<int64_t>(share));
    const std::span<char> text(texts[share]);
    if (rank == 0) continue;
    if (data_->rank() == 0) data_->receive_values(rank, text);
    if (rank == data_->rank()) data_->send_values(0, std::span<const char>(text));
  }
}

}  // namespace qiao::train
