// Cached prompts outlive their process: in the file, for their tenant and their model only.
#include "infer/saved_pages.h"

#include <gtest/gtest.h>

#include <limits>
#include <set>
#include <utility>

#include "hub/digest.h"
#include "infer/engine_harness.h"
#include "infer/made_model.h"
#include "support/expect_error.h"

namespace qiao::testing {
namespace {

const SavedPagesKind kKind = {std::string(64, 'a'), 2, 5, 3, 100};

SavedPage page(int64_t parent, char tenant, std::vector<TokenId> tokens, std::string_view contents) {
  static std::set<std::string> tenants;  // pages hold views
  return {parent, *tenants.emplace(64, tenant).first, std::move(tokens), contents};
}

std::string file_of(const std::vector<SavedPage>& pages, const std::vector<SavedSlidingPage>& sliding = {}) {
  std::string file = saved_pages_header(kKind, std::string(32, '7'), std::ssize(pages), std::ssize(sliding));
  for (const SavedPage& saved : pages) file += saved_page_record(saved);
  for (const SavedSlidingPage& saved : sliding) file += saved_page_record(saved);
  return file;
}

SavedPagesFile parse(std::string_view file, const SavedPagesKind& kind = kKind) {
  return parse_saved_pages(std::as_bytes(std::span(file.data(), file.size())), "file", kind);
}

const std::string kGood =
    file_of({page(-1, '1', {5, 6}, "first"), page(0, '1', {7, 99}, "other"), page(-1, '2', {5, 6}, "three")},
            {{2, "xyz"}, {0, "abc"}});

TEST(SavedPagesFileTest, GivesBackWhatWasWritten) {
  const SavedPagesFile file = parse(kGood);
  EXPECT_EQ(file.salt, std::string(32, '7'));
  ASSERT_EQ(file.pages.size(), 3u);
  EXPECT_EQ(file.pages[1].parent, 0);
  EXPECT_EQ(file.pages[1].tenant, std::string(64, '1'));
  EXPECT_EQ(file.pages[1].tokens, (std::vector<TokenId>{7, 99}));
  EXPECT_EQ(file.pages[2].contents, "three");
  ASSERT_EQ(file.sliding.size(), 2u);
  EXPECT_EQ(file.sliding[0].beside, 2);
  EXPECT_EQ(file.sliding[1].contents, "abc");
}

TEST(SavedPagesFileTest, EveryCutAndEveryFlippedBitIsRefused) {
  for (size_t size = 0; size < kGood.size(); ++size)
    EXPECT_QIAO_ERROR(parse(std::string_view(kGood).substr(0, size)), kInvalidInput, "file: offset ");
  for (size_t bit = 0; bit < 8 * kGood.size(); ++bit) {
    std::string damaged = kGood;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ 1 << bit % 8);
    EXPECT_QIAO_ERROR(parse(damaged), kInvalidInput, "file: offset ");
  }
  EXPECT_QIAO_ERROR(parse(kGood + "x"), kInvalidInput, "pages of");
}

TEST(SavedPagesFileTest, RefusesWhatIsOfSomethingElse) {
  EXPECT_QIAO_ERROR(parse("GGUF"), kInvalidInput, "not a file of saved pages");
  SavedPagesKind other = kKind;
  other.identity = std::string(64, 'b');
  EXPECT_QIAO_ERROR(parse(kGood, other), kInvalidInput, "another model");
  other = kKind;
  other.page_tokens = 3;
  EXPECT_QIAO_ERROR(parse(kGood, other), kInvalidInput, "pages of 2 tokens");
  other = kKind;
  other.sliding_bytes = 0;
  EXPECT_QIAO_ERROR(parse(kGood, other), kInvalidInput, "5 and 3 bytes");
  other = kKind;
  other.vocabulary = 99;
  EXPECT_QIAO_ERROR(parse(kGood, other), kInvalidInput, "token 99");
}

TEST(SavedPagesFileTest, RefusesTreesThatAreNone) {
  EXPECT_QIAO_ERROR(parse(file_of({page(0, '1', {5, 6}, "first")})), kInvalidInput, "page 0 follows page 0");
  EXPECT_QIAO_ERROR(parse(file_of({page(-2, '1', {5, 6}, "first")})), kInvalidInput, "follows page -2");
  EXPECT_QIAO_ERROR(parse(file_of({page(-1, '1', {5, 6}, "first"), page(0, '2', {5, 6}, "other")})),
                    kInvalidInput, "another tenant's");
  EXPECT_QIAO_ERROR(parse(file_of({page(-1, '1', {5, -6}, "first")})), kInvalidInput, "token -6");
  EXPECT_QIAO_ERROR(parse(file_of({page(-1, 'x', {5, 6}, "first")})), kInvalidInput, "not hexadecimal");
  for (const int64_t beside : {1, 2, -1}) {
    EXPECT_QIAO_ERROR(parse(file_of({page(-1, '1', {5, 6}, "first")}, {{beside, "xyz"}})), kInvalidInput,
                      "sliding page 0 lies beside page");
  }
}

TEST(SavedPagesFileTest, RefusesCountsThatDoNotMakeTheFile) {
  const std::string records = kGood.substr(saved_pages_header_bytes());
  constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
  const std::pair<int64_t, int64_t> wrong[] = {{3, 1},     {2, 2},     {3, 3},  {0, 0},
                                               {kHuge, 0}, {0, kHuge}, {-1, -1}};
  for (const auto& [pages, sliding] : wrong) {
    EXPECT_QIAO_ERROR(parse(saved_pages_header(kKind, std::string(32, '7'), pages, sliding) + records),
                      kInvalidInput, "do not make the");
  }
}

TEST(SavedPagesFileTest, AGroupOfLayersMayHaveNoPages) {
  SavedPagesKind kind = kKind;
  kind.page_bytes = 0;
  std::string file = saved_pages_header(kind, std::string(32, '7'), 1, 1);
  file += saved_page_record(page(-1, '1', {5, 6}, ""));
  file += saved_page_record(SavedSlidingPage{0, "xyz"});
  EXPECT_EQ(parse(file, kind).sliding.at(0).contents, "xyz");
  kind = kKind;
  kind.sliding_bytes = 0;
  file = saved_pages_header(kind, std::string(32, '7'), 1, 0) +
         saved_page_record(page(-1, '1', {5, 6}, "first"));
  EXPECT_EQ(parse(file, kind).pages.size(), 1u);
}

class SavedPagesTest : public ::testing::Test {
 protected:
  EngineOptions options(DType dtype = DType::kF16) const {
    return {.context = 200,
            .page_tokens = 8,
            .pages = 64,
            .kv_dtype = dtype,
            .cache_directory = directory_.path()};
  }
  GenerationRequest request(const std::string& tenant) const {
    GenerationRequest made =
        greedy(*model_, "A bridge carries people over a river; this one carries words.", 12);
    made.tenant = tenant;
    made.logprobs = true;
    return made;
  }
  std::vector<std::filesystem::path> files() const {
    std::vector<std::filesystem::path> list;
    for (const auto& entry : std::filesystem::directory_iterator(directory_.path()))
      list.push_back(entry.path());
    return list;
  }

  const TemporaryDirectory files_of_model_, directory_;
  std::shared_ptr<LanguageModel> model_ = [this] {
    write_model(files_of_model_, {.window = 24});
    return LanguageModel::load(files_of_model_.path(), {.device = "cpu", .threads = 1});
  }();
};

TEST_F(SavedPagesTest, ARestartKeepsWarmPromptsOfTheirTenant) {
  for (const DType dtype : {DType::kF16, DType::kQ8_0, DType::kF8_E4M3}) {
    Answer cold;
    {
      Engine engine(model_, options(dtype));
      EXPECT_EQ(engine.restored(), "");
      cold = run(engine, request("secret-key"));
      engine.drain();
      EXPECT_NE(engine.save_cache().find("Saved "), std::string::npos);
    }
    Engine engine(model_, options(dtype));
    EXPECT_NE(engine.restored().find("Restored "), std::string::npos) << engine.restored();
    const Answer stranger = run(engine, request("other-key"));
    EXPECT_EQ(stranger.last.cached_tokens, 0);
    const Answer warm = run(engine, request("secret-key"));
    EXPECT_GE(warm.last.cached_tokens, warm.last.prompt_tokens - 8);
    for (const Answer* answer : {&stranger, &warm}) {
      EXPECT_EQ(answer->tokens, cold.tokens);
      for (size_t i = 0; i < cold.logprobs.size(); ++i)
        EXPECT_EQ(answer->logprobs[i].logprob, cold.logprobs[i].logprob);
    }
  }
  EXPECT_EQ(files().size(), 3u);  // one a dtype: pages of one are nothing to the other
  for (const auto& file : files()) {
    EXPECT_EQ(read_file(file).find("secret-key"), std::string::npos);
    EXPECT_EQ(std::filesystem::status(file).permissions(),
              std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
  }
}

TEST_F(SavedPagesTest, PagesOfAnAdapterAreOfItsWeightsAlone) {
  const auto load = [](const std::vector<AdapterSource>& adapters) {
    return load_chat_model(1, "cpu", adapters);
  };
  const auto ask = [&](Engine& engine, const std::string& adapter) {
    GenerationRequest made = request("key");
    made.adapter = adapter;
    return run(engine, made);
  };
  Answer cold;
  {
    Engine engine(load(chat_adapters()), options());
    cold = ask(engine, "one");
    engine.drain();
    EXPECT_NE(engine.save_cache().find("Saved "), std::string::npos);
  }
  {
    Engine engine(load(chat_adapters()), options());
    EXPECT_EQ(ask(engine, "").last.cached_tokens, 0);
    EXPECT_EQ(ask(engine, "two").last.cached_tokens, 0);
    const Answer warm = ask(engine, "one");
    EXPECT_GT(warm.last.cached_tokens, 0);
    EXPECT_EQ(warm.tokens, cold.tokens);
  }
  std::vector<AdapterSource> exchanged = chat_adapters();
  std::swap(exchanged[0].path, exchanged[1].path);
  Engine engine(load(exchanged), options());
  EXPECT_NE(engine.restored().find("Restored "), std::string::npos) << engine.restored();
  EXPECT_EQ(ask(engine, "one").last.cached_tokens, 0);
}

// With few sliding pages: those at the ends of prompts and answers are the ones that are kept.
TEST_F(SavedPagesTest, WhatIsLeftOfASlidingWindowIsKept) {
  EngineOptions few = options();
  few.sliding_pages = 1;
  few.batch_tokens = 8;
  GenerationRequest longer = request("");
  const std::vector<TokenId> once = longer.prompt;
  for (int i = 0; i < 4; ++i) longer.prompt.insert(longer.prompt.end(), once.begin(), once.end());
  const auto missed = [&](Engine& engine) {
    const Answer answer = run(engine, longer);
    return answer.last.prompt_tokens - answer.last.cached_tokens;
  };
  {
    Engine engine(model_, few);
    EXPECT_LT(engine.options().sliding_pages, 8);
    EXPECT_GT(missed(engine), 4 * 24);
    EXPECT_LE(missed(engine), 8);
    engine.drain();
    (void)engine.save_cache();
  }
  Engine engine(model_, few);
  EXPECT_LE(missed(engine), 8);
}

TEST_F(SavedPagesTest, AFileOfAnotherVersionIsNotUsed) {
  {
    Engine engine(model_, options());
    (void)run(engine, request(""));
    (void)engine.save_cache();
  }
  const std::filesystem::path path = files().at(0);
  // The version's four bytes say 1; the header's checksum is that of the changed header.
  std::string bytes = read_file(path);
  bytes[8] = 1;
  const size_t header = saved_pages_header_bytes() - 16;
  Digest digest(Digest::Kind::kSha256);
  digest.update(std::string_view(bytes).substr(0, header));
  bytes.replace(header, 16, digest.hex().substr(0, 16));
  directory_.write(path.filename().string(), bytes);
  Engine engine(model_, options());
  EXPECT_NE(engine.restored().find("version 1, and 2 was expected"), std::string::npos) << engine.restored();
  EXPECT_EQ(run(engine, request("")).last.cached_tokens, 0);
}

TEST_F(SavedPagesTest, ADamagedFileIsNamedAndLeftOut) {
  {
    Engine engine(model_, options());
    (void)run(engine, request(""));
    (void)engine.save_cache();
  }
  ASSERT_EQ(files().size(), 1u);
  const std::filesystem::path path = files()[0];
  std::string bytes = read_file(path);
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
  directory_.write(path.filename().string(), bytes);
  Engine engine(model_, options());
  EXPECT_NE(engine.restored().find("ignored"), std::string::npos);
  EXPECT_NE(engine.restored().find(path.string()), std::string::npos);
  EXPECT_EQ(engine.restored().find('\n'), std::string::npos);
  EXPECT_EQ(run(engine, request("")).last.cached_tokens, 0);
}

TEST_F(SavedPagesTest, KeepsTheMostRecentWhereThereIsNoRoomForAll) {
  EngineOptions small = options();
  GenerationRequest old =
      greedy(*model_, "Something that was asked long ago, and of no use to anybody now.", 1);
  {
    Engine engine(model_, options());
    (void)run(engine, old);
    (void)run(engine, request(""));
    (void)engine.save_cache();
    const uint64_t all = std::filesystem::file_size(files()[0]);
    small.cache_directory_bytes = all * 6 / 10;
  }
  {
    Engine engine(model_, small);
    (void)engine.save_cache();
    EXPECT_LE(std::filesystem::file_size(files()[0]), small.cache_directory_bytes);
  }
  Engine engine(model_, small);
  EXPECT_GT(run(engine, request("")).last.cached_tokens, 0);
  EXPECT_LT(run(engine, old).last.cached_tokens, old.prompt.size() - 8);
}

TEST_F(SavedPagesTest, OtherModelsFilesGoWhereTheDirectoryGrowsTooLarge) {
  const auto stranger = directory_.write("0123.kvpages", std::string(100000, 'x'));
  const auto foreign = directory_.write("notes.txt", std::string(100000, 'x'));
  EngineOptions small = options();
  small.cache_directory_bytes = 90000;
  Engine engine(model_, small);
  (void)run(engine, request(""));
  (void)engine.save_cache();
  EXPECT_FALSE(std::filesystem::exists(stranger));
  EXPECT_TRUE(std::filesystem::exists(foreign));
}

}  // namespace
}  // namespace qiao::testing
