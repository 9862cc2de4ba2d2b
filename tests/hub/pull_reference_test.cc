#include <curl/curl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>

#include <chrono>
#include <cstdio>

#include "base/error.h"
#include "hub/digest.h"
#include "hub/pull.h"
#include "hub/store.h"
#include "hub/temporary_folder.h"

namespace qiao {
namespace {

using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

// Pulls from tests/hub/stand_in_hub.py, whose repositories' names say how they behave.
class PullReferenceTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    server_ = ::popen("exec python3 -B '" QIAO_TEST_DATA "/hub/stand_in_hub.py'", "r");
    ASSERT_NE(server_, nullptr);
    ASSERT_EQ(std::fscanf(server_, "%d %d %d", &port_, &other_port_, &pid_), 3);
  }
  static void TearDownTestSuite() {
    ::kill(pid_, SIGTERM);
    ::pclose(server_);
  }
  PullReferenceTest() {
    for (const char* name : {"HF_TOKEN", "HF_ENDPOINT", "QIAO_HF_ENDPOINT", "QIAO_MS_ENDPOINT"})
      ::unsetenv(name);
    ::setenv("no_proxy", "*", 1);
    options_.home = folder_.path() / "home";
    options_.style = Progress::Style::kSilent;
    options_.endpoint = "http://127.0.0.1:" + std::to_string(port_);
    options_.retry_delay = std::chrono::milliseconds(1);
    for (int i = 0; i < 800 * 256; ++i) big_ += static_cast<char>(i % 256);
  }

  std::filesystem::path fetch(const std::string& reference) {
    return pull(*parse_hub_reference(reference), options_);
  }
  std::string failure(const std::string& reference) {
    return message_of([&] { fetch(reference); });
  }
  // No file anywhere below home/models, and none above home.
  bool nothing_installed() const {
    std::error_code error;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder_.path(), error)) {
      if (!entry.is_regular_file()) continue;
      const auto inside = entry.path().lexically_relative(options_.home / "downloads");
      if (inside.empty() || *inside.begin() == "..") return false;
    }
    return true;
  }
  // What the server was asked so far.
  std::string server_log() const {
    std::string text;
    CURL* curl = curl_easy_init();
    curl_easy_setopt(curl, CURLOPT_URL, (options_.endpoint + "/__log").c_str());
    curl_easy_setopt(
        curl, CURLOPT_WRITEFUNCTION, +[](char* bytes, size_t, size_t count, void* to) {
          static_cast<std::string*>(to)->append(bytes, count);
          return count;
        });
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &text);
    EXPECT_EQ(curl_easy_perform(curl), CURLE_OK);
    curl_easy_cleanup(curl);
    return text;
  }

  static std::FILE* server_;
  static int port_, other_port_, pid_;
  TemporaryFolder folder_;
  PullOptions options_;
  std::string big_;
};
std::FILE* PullReferenceTest::server_ = nullptr;
int PullReferenceTest::port_ = 0;
int PullReferenceTest::other_port_ = 0;
int PullReferenceTest::pid_ = 0;

TEST_F(PullReferenceTest, FetchesAGguf) {
  const std::filesystem::path path = fetch("hf:org/gguf");
  EXPECT_EQ(path, options_.home / "models/hf/org/gguf/model-Q4_K_M.gguf");
  EXPECT_EQ(read_file(path), big_);
  EXPECT_EQ(fetch("hf:org/gguf:Q8_0"), options_.home / "models/hf/org/gguf/model-Q8_0.gguf");
  EXPECT_FALSE(std::filesystem::exists(options_.home / "downloads" / "hf"));
  const std::vector<InstalledModel> models = installed_models(options_.home);
  ASSERT_EQ(models.size(), 2u);
  EXPECT_EQ(models[0].name, "hf:org/gguf:model-Q4_K_M.gguf");
  EXPECT_EQ(find_installed(*parse_hub_reference("hf:org/gguf"), options_.home)->path, path);
}

TEST_F(PullReferenceTest, FetchesADirectory) {
  const std::filesystem::path path = fetch("hf:org/directory");
  EXPECT_EQ(path, options_.home / "models/hf/org/directory");
  EXPECT_EQ(read_file(path / "model.safetensors"), big_);
  EXPECT_EQ(read_file(path / "config.json"), "{\"model_type\": \"llama\"}");
  EXPECT_TRUE(std::filesystem::exists(path / "tokenizer.json"));
}

TEST_F(PullReferenceTest, FetchesFromModelScope) {
  EXPECT_EQ(read_file(fetch("ms:org/gguf")), big_);
  EXPECT_THAT(failure("ms:org/none"), HasSubstr("expected JSON with Data.Files: \"no such repository\""));
}

TEST_F(PullReferenceTest, FetchesASplitSetAndRemovesIt) {
  const std::filesystem::path path = fetch("hf:org/split");
  EXPECT_THAT(path.string(), EndsWith("x-Q4_K_M-00001-of-00002.gguf"));
  const std::vector<InstalledModel> models = installed_models(options_.home);
  ASSERT_EQ(models.size(), 1u);
  EXPECT_EQ(models[0].files.size(), 2u);
  remove_model(models[0], options_.home);
  EXPECT_TRUE(nothing_installed());
  EXPECT_FALSE(std::filesystem::exists(options_.home / "models" / "hf"));
}

TEST_F(PullReferenceTest, FollowsPagesAndOddNames) {
  EXPECT_EQ(read_file(fetch("hf:org/paged")), big_);
  EXPECT_EQ(read_file(fetch("hf:org/odd-name")), big_);
  EXPECT_EQ(read_file(fetch("ms:org/odd-name")), big_);
}

TEST_F(PullReferenceTest, GoesOnWhereALostConnectionLeftIt) {
  EXPECT_EQ(read_file(fetch("hf:slow/resume")), big_);
  EXPECT_THAT(server_log(), HasSubstr("/slow/resume/resolve/main/model-Q4_K_M.gguf bytes=100000-"));
}

TEST_F(PullReferenceTest, BeginsAnewWhereItMayNotGoOn) {
  EXPECT_EQ(read_file(fetch("hf:slow/changed")), big_);
  EXPECT_EQ(read_file(fetch("hf:slow/weak-etag")), big_);
  EXPECT_EQ(read_file(fetch("hf:slow/no-etag")), big_);
  EXPECT_EQ(read_file(fetch("hf:slow/ignores-range")), big_);
  EXPECT_THAT(server_log(), Not(HasSubstr("weak-etag/resolve/main/model-Q4_K_M.gguf bytes=")));
}

TEST_F(PullReferenceTest, GoesOnWhereAKilledPullLeftIt) {
  const std::filesystem::path partial = options_.home / "downloads/hf/org/gguf/model-Q4_K_M.gguf.partial";
  std::filesystem::create_directories(partial.parent_path());
  write_file_atomically(partial, big_.substr(0, 150000));
  write_file_atomically(partial.string() + ".etag", "\"v1\"");
  EXPECT_EQ(read_file(fetch("hf:org/gguf")), big_);
  EXPECT_THAT(server_log(), HasSubstr("/org/gguf/resolve/main/model-Q4_K_M.gguf bytes=150000-"));
}

TEST_F(PullReferenceTest, TriesAgainWhileTheServerIsBusy) {
  EXPECT_EQ(read_file(fetch("hf:slow/flaky")), big_);
  EXPECT_THAT(failure("hf:evil/always-503"), EndsWith("gave up after 5 tries: status 503"));
}

TEST_F(PullReferenceTest, ComesAgainWhenTheServerSays) {
  options_.style = Progress::Style::kLines;
  testing::internal::CaptureStderr();
  auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(read_file(fetch("hf:slow/retry-after")), big_);  // first its list, then the file
  EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::seconds(2));
  begin = std::chrono::steady_clock::now();
  EXPECT_EQ(read_file(fetch("hf:slow/retry-at")), big_);  // in two seconds, as a date in whole seconds
  EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(900));
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              AllOf(HasSubstr("hf:slow/retry-after: status 429; trying again in 1 s\n"),
                    HasSubstr("hf:slow/retry-after: status 503; trying again in 1 s\n"),
                    HasSubstr("hf:slow/retry-at: status 503; trying again in ")));
  // Nobody waits for ever.
  begin = std::chrono::steady_clock::now();
  EXPECT_THAT(
      failure("hf:evil/retry-tomorrow"),
      EndsWith("gave up after 1 try: status 429; it asks to wait 86400 s, and all waits together are 60 s "
               "at most"));
  EXPECT_THAT(failure("hf:evil/retry-forever"), HasSubstr("status 429"));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(30));
}

TEST_F(PullReferenceTest, SendsTheTokenToItsHubAlone) {
  EXPECT_THAT(failure("hf:org/gated"),
              HasSubstr("not allowed (401); a private or gated model needs a token in HF_TOKEN"));
  ::setenv("HF_TOKEN", "secret", 1);
  EXPECT_EQ(read_file(fetch("hf:org/gated")), big_);
  const std::string log = server_log();
  EXPECT_THAT(
      log, HasSubstr(std::to_string(port_) + " /org/gated/resolve/main/model-Q4_K_M.gguf - Bearer secret"));
  EXPECT_THAT(log, HasSubstr(std::to_string(other_port_) + " /elsewhere - -\n"));
  EXPECT_THAT(failure("hf:evil/forbidden"), HasSubstr("does the token in HF_TOKEN give access"));
  ::setenv("HF_TOKEN", "a\r\nX-Evil: b", 1);
  EXPECT_EQ(failure("hf:org/gguf"), "HF_TOKEN holds a line break");
}

TEST_F(PullReferenceTest, AsksForTheHubsAddress) {
  options_.endpoint.clear();
  EXPECT_THAT(failure("hf:org/gguf"), HasSubstr("set the hub's address in QIAO_HF_ENDPOINT or HF_ENDPOINT"));
  EXPECT_THAT(failure("ms:org/gguf"), HasSubstr("QIAO_MS_ENDPOINT"));
  ::setenv("HF_ENDPOINT", "ftp://x", 1);
  EXPECT_THAT(failure("hf:org/gguf"), HasSubstr("must begin with https:// or http://"));
  ::setenv("QIAO_HF_ENDPOINT", ("http://127.0.0.1:" + std::to_string(port_) + "/").c_str(), 1);
  EXPECT_EQ(read_file(fetch("hf:org/gguf")), big_);
}

TEST_F(PullReferenceTest, SaysSoWhereNobodyAnswers) {
  options_.endpoint = "http://127.0.0.1:1";
  EXPECT_THAT(failure("hf:org/gguf"),
              AllOf(StartsWith("http://127.0.0.1:1/api/models/org/gguf/tree/main: gave up after 5 tries: "),
                    HasSubstr("connect")));
}

TEST_F(PullReferenceTest, RefusesHostileHubs) {
  const std::pair<const char*, const char*> cases[] = {
      {"traversal", "lists a file named \"../../../evil.gguf\", which is not taken"},
      {"absolute", "lists a file named \"/tmp/evil.gguf\""},
      {"backslash", "lists a file named \"a\\\\..\\\\evil.gguf\""},
      {"newline", "lists a file named \"a\\nb.gguf\""},
      {"no-size", "gives x.gguf no size"},
      {"negative-size", "gives x.gguf no size"},
      {"float-size", "gives x.gguf no size"},
      {"huge-size", "4.61 EB are needed"},
      {"sum-overflow", "more bytes than there can be"},
      {"wrong-sha", "x.gguf: its digest is "},
      {"malformed-sha", "gives x.gguf a malformed SHA-256"},
      {"object", "expected a JSON list of files"},
      {"numbers", "holds no model that Qiao reads"},
      {"nothing", "holds no model that Qiao reads"},
      {"missing", "not there (404)"},
      {"html", "answers with a web page, expected JSON"},
      {"broken-json", "not valid JSON"},
      {"deep-json", "nested deeper than 16"},
      {"endless-list", "the answer is over 16777216 bytes"},
      {"endless-pages", "more than 50 pages"},
      {"foreign-page", "its next page is on another host"},
      {"endless", "sends more than the 204800 bytes"},
      {"too-short", "gave up after 5 tries: ended after 50 of 204800 bytes"},
      {"wrong-range", "sends range 'bytes 100001-204799/204800', expected 'bytes 100000-204799/204800'"},
      {"redirect-loop", "redirected more than 8 times"},
      {"redirect-file", "redirects to file:///etc/passwd, which is not taken"},
      {"redirect-nowhere", "status 302 without an address"},
      {"many-headers", "of headers"},
  };
  for (const auto& [name, message] : cases) {
    const std::string got = failure(std::string("hf:evil/") + name);
    EXPECT_THAT(got, HasSubstr(message)) << name;
    EXPECT_EQ(got.find('\n'), std::string::npos) << name;
    EXPECT_TRUE(nothing_installed()) << name;
  }
  // Its weights are right, and stay; without config.json they are no model.
  EXPECT_THAT(failure("hf:evil/wrong-blob"), HasSubstr("config.json: its digest is "));
  EXPECT_TRUE(installed_models(options_.home).empty());
}

TEST(DigestTest, MatchesPublishedExamples) {
  Digest digest(Digest::Kind::kSha256);
  digest.update("a");
  digest.update("bc");
  EXPECT_EQ(digest.hex(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");  // FIPS 180-2
  TemporaryFolder folder;
  write_file_atomically(folder.path() / "x", "hello\n");
  EXPECT_EQ(git_blob_id_of_file(folder.path() / "x"),
            "ce013625030ba8dba906f756967f9e9ca394464a");  // git hash-object
}

TEST(StoreTest, NeverListsHalfAModel) {
  TemporaryFolder folder;
  const std::filesystem::path repository = folder.path() / "models/hf/o/r";
  std::filesystem::create_directories(repository);
  write_file_atomically(repository / "x-00001-of-00002.gguf", "x");
  write_file_atomically(repository / "model.safetensors", "x");  // config.json did not come yet
  EXPECT_TRUE(installed_models(folder.path()).empty());
  write_file_atomically(repository / "x-00002-of-00002.gguf", "x");
  ASSERT_EQ(installed_models(folder.path()).size(), 1u);
  EXPECT_EQ(installed_models(folder.path())[0].name, "hf:o/r:x-00001-of-00002.gguf");
  write_file_atomically(repository / "config.json", "{}");
  EXPECT_EQ(installed_models(folder.path())[0].name, "hf:o/r");
}

}  // namespace
}  // namespace qiao
