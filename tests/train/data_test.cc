// Rows, documents and how they are packed.
#include "train/data.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "base/file.h"
#include "support/expect_error.h"
#include "support/temporary_directory.h"

namespace qiao::train {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Rows {"n": tokens, "whole": true, "loss": first token that carries loss}: tokens are 1, 2, 3…
class CountingDocuments final : public DocumentMaker {
 public:
  std::vector<Document> make(const Row& row) override {
    Document document;
    const auto count = row.json.at("n").get<int32_t>();
    for (int32_t i = 1; i <= count; ++i) document.tokens.push_back(i);
    document.whole = row.json.value("whole", false);
    if (row.json.contains("loss"))
      for (int32_t i = 0; i < count; ++i) document.learned.push_back(i >= row.json["loss"].get<int32_t>());
    return {std::move(document)};
  }
};

class DataTest : public ::testing::Test {
 protected:
  fs::path write(const std::string& name, const std::string& text) {
    fs::create_directories((folder_.path() / name).parent_path());
    write_file_atomically(folder_.path() / name, text);
    return folder_.path() / name;
  }
  Warn warn() {
    return [this](const std::string& text) { warnings_.push_back(text); };
  }
  DataStream stream(const std::string& rows, int64_t sequence) {
    DataOptions options;
    options.files = {write("rows.jsonl", rows)};
    options.shuffle = false;
    options.sequence = sequence;
    options.vocabulary_size = 1000;
    return {options, std::make_unique<CountingDocuments>(), warn()};
  }
  testing::TemporaryDirectory folder_;
  std::vector<std::string> warnings_;
};

TEST_F(DataTest, DocumentsThatMayBeSplitFillSequencesToTheLastToken) {
  DataStream data = stream("{\"n\": 5}\n{\"n\": 2}\n", 4);
  const TokenBatch batch = data.next(2);
  EXPECT_THAT(batch.tokens, ElementsAre(1, 2, 3, 4, 5, 1, 2, 1));
  EXPECT_THAT(batch.positions, ElementsAre(0, 1, 2, 3, 0, 0, 1, 0));
  EXPECT_THAT(batch.labels, ElementsAre(2, 3, 4, -1, -1, 2, -1, -1));
  EXPECT_THAT(batch.starts, ElementsAre(0, 4, 5, 7, 8));
  EXPECT_THAT(batch.sequences, ElementsAre(0, 4, 8));
  EXPECT_EQ(batch.labelled, 4);
}

TEST_F(DataTest, WholeDocumentsBeginTheNextSequenceWhereTheyDoNotFit) {
  DataStream data = stream(
      "{\"n\": 3, \"whole\": true, \"loss\": 2}\n{\"n\": 2, \"whole\": true}\n{\"n\": 9, \"whole\": true}\n",
      4);
  const TokenBatch batch = data.next(3);
  EXPECT_THAT(batch.tokens, ElementsAre(1, 2, 3, 1, 2, 1, 2, 3, 4));  // the last is cut
  EXPECT_THAT(batch.labels, ElementsAre(-1, 3, -1, 2, -1, 2, 3, 4, -1));
  EXPECT_THAT(batch.sequences, ElementsAre(0, 3, 5, 9));
  EXPECT_THAT(data.next(1).tokens, ElementsAre(1, 2, 3));
  EXPECT_EQ(data.survey(1 << 20).too_long, 1);
}

TEST_F(DataTest, WhatDoesNotLearnWithinTheSequenceIsABadRow) {
  DataStream data = stream("{\"n\": 9, \"whole\": true, \"loss\": 5}\n{\"n\": 1}\n{\"n\": 2}\n", 4);
  EXPECT_THAT(data.next(1).tokens, ElementsAre(1, 2, 1, 2));
  ASSERT_EQ(warnings_.size(), 2u);
  EXPECT_THAT(warnings_[0], HasSubstr("rows.jsonl:1: none of its first 4 tokens (--seq) carries loss"));
  EXPECT_THAT(warnings_[1], HasSubstr("rows.jsonl:2: a document of 1 tokens has nothing to learn"));
}

TEST_F(DataTest, GoesOnFromAPositionToTheSameBatches) {
  const std::string rows = "{\"n\": 5}\n{\"n\": 3, \"whole\": true}\n{\"n\": 7}\n";
  DataStream one = stream(rows, 4);
  one.next(2);
  const DataPosition position = read_position(to_json(one.position()));
  DataStream other = stream(rows, 4);
  other.set_position(position);
  for (int i = 0; i < 5; ++i) {
    const TokenBatch a = one.next(1), b = other.next(1);
    EXPECT_EQ(a.tokens, b.tokens);
    EXPECT_EQ(a.labels, b.labels);
  }
}

TEST_F(DataTest, FoldersGiveTextsAndRowsInTheOrderOfTheirNames) {
  write("all/b/two.txt", "\xEF\xBB\xBFsecond");
  write("all/a.txt", "first");
  write("all/c.jsonl", "{\"text\": \"third\"}\n\n  \n{\"text\": \"fourth\"}");
  write("all/.hidden.txt", "never");
  write("all/empty.txt", "");
  RowOptions options;
  options.files = {folder_.path() / "all"};
  options.shuffle = false;
  Rows rows(options, warn());
  ASSERT_EQ(rows.size(), 4);
  std::vector<std::string> texts;
  for (int64_t i = 0; i < 4; ++i) texts.push_back(rows.read(rows.at(0, i))->json["text"]);
  EXPECT_THAT(texts, ElementsAre("first", "second", "third", "fourth"));
  EXPECT_THAT(rows.where(3), HasSubstr("c.jsonl:4"));
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr("empty.txt: the file is empty")));
}

TEST_F(DataTest, LongTextsAreSeveralRowsCutAtLines) {
  std::string text;
  while (text.size() < size_t{5} << 19) text += "A line of some length, with ü in it.\n";
  RowOptions options;
  options.files = {write("long.txt", text)};
  options.shuffle = false;
  Rows rows(options, {});
  ASSERT_EQ(rows.size(), 3);
  std::string together;
  for (int64_t i = 0; i < 3; ++i) {
    const Row row = *rows.read(i);
    together += row.json["text"].get<std::string>();
    EXPECT_TRUE(together.ends_with('\n'));
    EXPECT_EQ(row.ends, i == 2);
  }
  EXPECT_EQ(together, text);
  const std::string one_line(size_t{3} << 20, '\xC3');  // no line's end, no whole character
  options.files = {write("broken.txt", one_line)};
  Rows broken(options, warn());
  EXPECT_FALSE(broken.read(0).has_value());
}

TEST_F(DataTest, EachEpochHasAnOrderOfItsOwnOfAllRows) {
  RowOptions options;
  std::string text;
  for (int i = 0; i < 50; ++i) text += "{}\n";
  options.files = {write("rows.jsonl", text)};
  options.seed = 7;
  Rows rows(options, {}), again(options, {});
  std::vector<int64_t> first, second;
  for (int64_t i = 0; i < 50; ++i) first.push_back(rows.at(0, i));
  for (int64_t i = 0; i < 50; ++i) second.push_back(rows.at(1, i));
  EXPECT_NE(first, second);
  EXPECT_EQ(std::set<int64_t>(first.begin(), first.end()).size(), 50u);
  for (int64_t i = 0; i < 50; ++i) EXPECT_EQ(again.at(0, i), first[static_cast<size_t>(i)]);
}

TEST_F(DataTest, HostileRowsAreBadRows) {
  const std::string rows[] = {
      std::string(100'000, '['), "{\"n\": \"\\ud800\"}", std::string("{\"n\": 1\0}", 9), "\xFF\xFE", "nul",
      "{\"n\": 1e999}",          "{\"n\": [[[[]]]]"};
  std::string text = "{\"n\": 2}\n";
  for (const std::string& row : rows) text += row + "\n";
  RowOptions options;
  options.files = {write("rows.jsonl", text)};
  Rows all(options, warn());
  EXPECT_TRUE(all.read(0).has_value());
  int64_t bad = 0;
  for (int64_t i = 1; i < all.size(); ++i) bad += all.read(i) ? 0 : 1;
  EXPECT_EQ(bad, 7);
  EXPECT_EQ(all.bad_rows(), 7);
  options.most_bad_rows = 2;
  Rows few(options, {});
  few.read(1);
  few.read(2);
  few.read(2);  // counts once
  EXPECT_QIAO_ERROR(few.read(3), kInvalidInput, "rows.jsonl:4", "3 bad rows of 8 are too many");
}

TEST_F(DataTest, FilesThatGiveNothingAreRefused) {
  RowOptions options;
  EXPECT_QIAO_ERROR(Rows(options, {}), kInvalidInput, "no file was given");
  options.files = {folder_.path() / "missing.jsonl"};
  EXPECT_QIAO_ERROR(Rows(options, {}), kNotFound, "missing.jsonl");
  options.files = {write("empty.jsonl", "")};
  EXPECT_QIAO_ERROR(Rows(options, {}), kInvalidInput, "empty.jsonl");
  options.files = {write("blank.jsonl", "\n \n\t\n")};
  EXPECT_QIAO_ERROR(Rows(options, {}), kInvalidInput, "blank.jsonl has no row");
  options.files = {write("bad.jsonl", "{\n")};
  Rows only(options, {});
  EXPECT_QIAO_ERROR(only.read(0), kInvalidInput, "bad.jsonl:1", "1 bad rows of 1 are too many");
  options.files = {write("changed.jsonl", "{}\n{}\n")};
  options.files = {folder_.path() / "changed.jsonl", write("other.jsonl", "{}\n")};
  Rows two(options, {});  // the last file that was read is the other
  write("changed.jsonl", "{}\n{}\n{}\n");
  EXPECT_QIAO_ERROR(two.read(0), kIo, "changed.jsonl", "the file was changed");
}

}  // namespace
}  // namespace qiao::train
