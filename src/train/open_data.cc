#include "train/open_data.h"

#include "train/chat_encoder.h"
#include "train/preference.h"

namespace qiao::train {
namespace {

// Rows that are looked at before a run begins: some seconds' worth.
constexpr int64_t kSurveyBytes = int64_t{16} << 20;

}  // namespace

std::unique_ptr<DataStream> open_data(const TrainOptions& options, const ModelFiles& files,
                                      const Tokenizer* tokenizer, int64_t vocabulary, const Warn& warn) {
  DataOptions data = options.data;
  data.vocabulary_size = vocabulary;
  std::unique_ptr<DocumentMaker> maker;
  PlainDocuments plain(tokenizer, vocabulary);
  if (options.mode == "finetune") {
    maker = std::make_unique<ChatDocuments>(ChatEncoder(files, tokenizer, {options.chat_template}), plain);
  } else if (options.mode == "dpo") {
    maker = std::make_unique<PairDocuments>(ChatEncoder(files, tokenizer, {options.chat_template}));
  } else {
    return std::make_unique<DataStream>(data, std::make_unique<PlainDocuments>(plain), warn);
  }
  auto stream = std::make_unique<DataStream>(data, std::move(maker), warn);
  const DataStream::Survey survey = stream->survey(kSurveyBytes);
  if (survey.too_long > 0 && warn) {
    const bool all = survey.rows == stream->rows();
    warn(fmt::format("{} of {} {}{} are longer than --seq {}: they are cut behind their first {} tokens",
                     survey.too_long, survey.whole, options.mode == "dpo" ? "pairs" : "conversations",
                     all ? "" : fmt::format(" (of the first {} rows)", survey.rows), data.sequence,
                     data.sequence));
  }
  return stream;
}

}  // namespace qiao::train
