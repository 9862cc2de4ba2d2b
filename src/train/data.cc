#include "train/data.h"

#include <algorithm>

#include "base/error.h"

namespace qiao::train {
namespace {

bool learns_within(const Document& document, int64_t tokens) {
  const auto end = static_cast<size_t>(std::min<int64_t>(std::ssize(document.tokens), tokens));
  for (size_t token = 1; token < end; ++token)
    if (document.learns(token)) return true;
  return false;
}

}  // namespace

void TokenBatch::add(const Document& document, int64_t first, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<size_t>(first + i);
    const bool carries_loss = i + 1 < count && document.learns(at + 1);
    tokens.push_back(document.tokens[at]);
    positions.push_back(static_cast<int32_t>(i));
    labels.push_back(carries_loss ? document.tokens[at + 1] : -1);
    labelled += carries_loss ? 1 : 0;
  }
  starts.push_back(static_cast<int32_t>(tokens.size()));
}

DataStream::DataStream(const DataOptions& options, std::unique_ptr<DocumentMaker> maker, Warn warn)
    : rows_(options, std::move(warn)),
      maker_(std::move(maker)),
      sequence_(options.sequence),
      vocabulary_size_(options.vocabulary_size) {}

void DataStream::check(const Document& document) const {
  if (document.tokens.size() < 2) {
    throw_error(ErrorKind::kInvalidInput,
                "a document of {} tokens has nothing to learn; 2 or more were expected",
                document.tokens.size());
  }
  for (const int32_t token : document.tokens) {
    if (token >= vocabulary_size_) {
      throw_error(ErrorKind::kInvalidInput, "it holds token {}; ids below {} were expected", token,
                  vocabulary_size_);
    }
  }
  if (document.whole && !learns_within(document, sequence_))
    throw_error(ErrorKind::kInvalidInput, "none of its first {} tokens (--seq) carries loss", sequence_);
}

std::vector<Document> DataStream::read(int64_t row) {
  std::optional<Row> json = rows_.read(row);
  if (!json) return {};
  try {
    std::vector<Document> documents = maker_->make(*json);
    for (const Document& document : documents) check(document);
    return documents;
  } catch (const Error& error) {
    rows_.refuse(row, error.what());
    return {};
  }
}

DataStream::Survey DataStream::survey(int64_t most_bytes) {
  Survey survey;
  for (int64_t bytes = 0; survey.rows < rows() && bytes < most_bytes; ++survey.rows) {
    bytes += rows_.bytes(survey.rows);
    const std::vector<Document> documents = read(survey.rows);
    survey.whole += std::ranges::any_of(documents, &Document::whole) ? 1 : 0;
    survey.too_long += std::ranges::any_of(documents,
                                           [&](const Document& document) {
                                             return document.whole && std::ssize(document.tokens) > sequence_;
                                           })
                           ? 1
                           : 0;
  }
  return survey;
}

void DataStream::set_position(const DataPosition& position) {
  if (position.row >= rows()) {
    throw_error(ErrorKind::kInvalidInput,
                "data: the run stands at row {} and there are {}: other files than those it began with",
                position.row, rows());
  }
  position_ = position;
  documents_.clear();
}

Json DataStream::state() const {
  Json state = rows_.state();
  state.update(to_json(position_));
  return state;
}

void DataStream::set_state(const Json& state) {
  rows_.set_state(state);
  set_position(read_position(state));
}

void DataStream::go_on() {
  documents_.clear();
  position_.offset = 0;
  if (++position_.row == rows()) {
    position_.row = 0;
    ++position_.epoch;
  }
}

TokenBatch DataStream::next(int64_t sequences, int64_t last_epoch) {
  TokenBatch batch;
  const auto end_sequence = [&] { batch.sequences.push_back(static_cast<int32_t>(batch.tokens.size())); };
  while (std::ssize(batch.sequences) - 1 < sequences && position_.epoch <= last_epoch) {
    if (documents_.empty()) documents_ = read(rows_.at(position_.epoch, position_.row));
    if (documents_.empty() || std::ssize(documents_[0].tokens) <= position_.offset) {
      go_on();
      continue;
    }
    QIAO_ASSERT(documents_.size() == 1);
    const Document& document = documents_[0];
    const int64_t room = sequence_ - (std::ssize(batch.tokens) - batch.sequences.back());
    const int64_t rest = std::ssize(document.tokens) - position_.offset;
    if (document.whole && std::min(rest, sequence_) > room) {
      end_sequence();  // it comes first in the next
      continue;
    }
    const int64_t taken = std::min(rest, room);
    batch.add(document, position_.offset, taken);
    if (taken == room) end_sequence();
    position_.offset += taken;
    if (document.whole || taken == rest) go_on();
  }
  if (batch.sequences.back() < std::ssize(batch.tokens)) end_sequence();  // the epoch's last
  return batch;
}

TokenBatch DataStream::next_rows(int64_t rows) {
  TokenBatch batch;
  for (int64_t done = 0; done < rows; go_on()) {
    documents_ = read(rows_.at(position_.epoch, position_.row));
    for (const Document& document : documents_) {
      batch.add(document, 0, std::min(std::ssize(document.tokens), sequence_));
      batch.sequences.push_back(batch.starts.back());
    }
    done += documents_.empty() ? 0 : 1;
  }
  return batch;
}

Json to_json(const DataPosition& position) {
  return {{"epoch", position.epoch}, {"row", position.row}, {"offset", position.offset}};
}

DataPosition read_position(const Json& state) {
  const auto number = [&](const char* key) {
    const auto found = state.find(key);
    if (found == state.end() || !found->is_number_integer() || *found < 0)
      throw_error(ErrorKind::kInvalidInput, "checkpoint: data.{} is missing", key);
    return found->get<int64_t>();
  };
  return {number("epoch"), number("row"), number("offset")};
}

}  // namespace qiao::train
