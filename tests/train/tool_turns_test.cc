// Completions of several turns: a tiny model that was taught to call a tool, token in and token out.
#include "train/tool_turns.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/expect_error.h"
#include "support/temporary_directory.h"
#include "train/golden_run.h"
#include "train/policy_world.h"
#include "train/trainer.h"

namespace qiao::train {
namespace {

using qiao::testing::PolicyWorld;
namespace fs = std::filesystem;
using qiao::testing::TemporaryDirectory;

constexpr const char* kToolTemplate =
    R"({% if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content or '' }}{% for c in m.tool_calls or [] %}<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %})";

constexpr const char* kCall = "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool_call>";
constexpr const char* kBehindCall = "\n<|im_start|>tool\n3<|im_end|>\n<|im_start|>assistant\n";

fs::path model_with_tools(const fs::path& folder, const std::string& source = kToolTemplate) {
  testing::copy_files(testing::golden_folder() / "chat", folder);
  Json config = parse_json(read_file(folder / "tokenizer_config.json"), "tokenizer_config.json");
  config["chat_template"] = source;
  write_file_atomically(folder / "tokenizer_config.json", dump_json(config));
  return folder;
}

Json tools() { return Json::array({{{"type", "function"}, {"function", {{"name", "add"}}}}}); }

class NoRecord : public TrainObserver {
 public:
  void on_start(const TrainReport&) override {}
  void on_step(const StepRecord&) override {}
  void on_warning(const std::string& text) override { ADD_FAILURE() << text; }
  bool should_stop() override { return false; }
};

// The conversation by tokens: `drawn` says which are the model's. The call is spelt in tokens of one
// character, as no tokenizer would spell it.
struct Lesson {
  explicit Lesson(const LanguageModel& model) {
    const ToolTurns turns(model, tools());
    prompt = turns.render_prompt(Json::array({{{"role", "user"}, {"content", "1+2"}}}), Json::object());
    add(model.encode_rendered_chat(prompt), false);
    for (const char* c = kCall; *c != '\0'; ++c) add(model.tokenizer().encode(std::string(1, *c)), true);
    const TokenId end = *model.tokenizer().find_token("<|im_end|>");
    add({end}, true);
    add(model.tokenizer().encode(kBehindCall, {.parse_special = true}), false);
    add(model.tokenizer().encode("It is 3."), true);
    add({end}, true);
  }
  void add(const std::vector<TokenId>& more, bool is_drawn) {
    tokens.insert(tokens.end(), more.begin(), more.end());
    drawn.resize(tokens.size(), is_drawn);
  }
  std::string prompt;
  std::vector<TokenId> tokens;
  std::vector<bool> drawn;
};

class ToolTurnsTest : public ::testing::Test {
 protected:
  // Until it says nothing else.
  void teach(const Lesson& lesson, const fs::path& init) {
    const fs::path rows = folder_.path() / "lesson.jsonl";
    write_file_atomically(rows, dump_json({{"tokens", lesson.tokens}}) + "\n");
    TrainOptions options;
    options.init = init;
    options.out = folder_.path() / "taught";
    options.data.files = {rows};
    options.data.sequence = std::ssize(lesson.tokens);
    options.steps = 60;
    options.batch = 1;
    options.optimizer.learning_rate = 0.01;
    options.threads = 2;
    NoRecord observer;
    train(options, observer);
  }
  std::shared_ptr<LanguageModel> load(const fs::path& init) {
    LanguageModelOptions options;
    options.threads = 1;
    return LanguageModel::load(init, options);
  }
  TemporaryDirectory folder_;
};

TEST_F(ToolTurnsTest, OnlyWhatTheModelDrewCarriesLossAndNothingIsTokenizedAgain) {
  const fs::path init = model_with_tools(folder_.path() / "init");
  const Lesson lesson(*load(init));
  teach(lesson, init);

  write_file_atomically(folder_.path() / "tools.json", dump_json(tools()));
  const fs::path asked = folder_.path() / "asked.jsonl", called = folder_.path() / "called.jsonl";
  write_file_atomically(
      folder_.path() / "prompts.jsonl",
      dump_json({{"messages", Json::array({{{"role", "user"}, {"content", "1+2"}}})}, {"sum", 3}}) + "\n");
  PolicyOptions options;
  options.group = 4;
  options.max_tokens = std::ssize(lesson.tokens);
  options.tools = folder_.path() / "tools.json";
  options.tool_command =
      "while read -r line; do printf '%s\\n' \"$line\" >> '" + called.string() + "'; echo '[3]'; done";
  options.reward.command = "n=0; while read -r line; do printf '%s\\n' \"$line\" >> '" + asked.string() +
                           "'; n=$((n + 1)); echo $n; done";
  DataOptions data;
  data.files = {folder_.path() / "prompts.jsonl"};
  data.sequence = 2 * std::ssize(lesson.tokens);
  PolicyWorld world(folder_.path() / "taught" / "model", options, data, 1, 0, 2);
  world.policy->begin_step(1);
  EXPECT_NO_THROW(world.loss());  // the same bits, through every turn
  EXPECT_GT(world.policy->report()["turns"].get<double>(), 1.4);

  // Nearly all of what is drawn is the lesson.
  const PackedBatch batch = world.policy->part(0);
  int64_t as_taught = 0;
  for (size_t i = 0; i + 1 < batch.starts.size(); ++i) {
    const auto first = static_cast<size_t>(batch.starts[i]), end = static_cast<size_t>(batch.starts[i + 1]);
    const std::vector<TokenId> tokens(batch.tokens.begin() + static_cast<std::ptrdiff_t>(first),
                                      batch.tokens.begin() + static_cast<std::ptrdiff_t>(end));
    if (tokens != lesson.tokens) continue;
    ++as_taught;
    for (size_t t = 0; t + 1 < tokens.size(); ++t)
      EXPECT_EQ(batch.labels[first + t], lesson.drawn[t + 1] ? tokens[t + 1] : -1) << t;
  }
  EXPECT_GE(as_taught, 1);

  bool told = false;
  std::string lines = read_file(asked);
  for (size_t begin = 0, end = 0; (end = lines.find('\n', begin)) != std::string::npos; begin = end + 1) {
    const Json line = parse_json(std::string_view(lines).substr(begin, end - begin), "asked");
    EXPECT_EQ(line["row"]["sum"], 3);
    EXPECT_EQ(line["prompt"], line["row"]["messages"]);
    const Json& messages = line["messages"];
    if (line["completion"] != "It is 3." || messages.size() != 4) continue;
    told = true;
    EXPECT_EQ(messages[1]["tool_calls"][0]["function"]["name"], "add");
    EXPECT_EQ(messages[1]["tool_calls"][0]["function"]["arguments"], Json({{"a", 1}}));
    EXPECT_EQ(messages[2]["role"], "tool");
    EXPECT_EQ(messages[2]["content"], "3");
    EXPECT_EQ(messages[3]["content"], "It is 3.");
    EXPECT_EQ(line["finished"], true);
  }
  EXPECT_TRUE(told);
  const std::string first_call = read_file(called);
  EXPECT_EQ(parse_json(std::string_view(first_call).substr(0, first_call.find('\n')), "called")["calls"],
            Json::array({{{"id", "call_0"}, {"name", "add"}, {"arguments", {{"a", 1}}}}}));

  // One answer is all: the call stays a call.
  options.max_turns = 1;
  PolicyWorld one(folder_.path() / "taught" / "model", options, data, 1, 0, 1);
  one.policy->begin_step(1);
  EXPECT_EQ(one.policy->report()["turns"], 1.0);

  // Of two processes that train one model the first has the programs; both train on what followed.
  options.max_turns = 8;
  TrainOptions spread;
  spread.init = folder_.path() / "taught" / "model";
  spread.out = folder_.path() / "spread";
  spread.data = data;
  spread.mode = "grpo";
  spread.policy = options;
  spread.batch = spread.steps = 1;
  spread.tensor_parallel = 2, spread.virtual_ranks = 1;
  const Json report = run_in_threads(spread, 2).steps.at(0).more;
  EXPECT_EQ(report["rollout_differing"], 0);
  EXPECT_GT(report["turns"].get<double>(), 1.4);

  options.tool_command = "while read -r line; do echo '[1, 2]'; done";
  PolicyWorld wrong(folder_.path() / "taught" / "model", options, data, 1, 0, 1);
  EXPECT_QIAO_ERROR(wrong.policy->begin_step(1), kIo, "turn 1: tools (while", "[1, 2]",
                    "a list of 1 results");
}

TEST_F(ToolTurnsTest, TheTextBehindAnAnswerIsTheTemplatesOwn) {
  const auto model = load(model_with_tools(folder_.path() / "init"));
  const ToolTurns turns(*model, tools());
  const Json messages = Json::array({{{"role", "user"}, {"content", "1+2"}}});
  const ToolTurns::Answer answer = turns.read_answer(model->tokenizer().encode(kCall), "", 5);
  ASSERT_EQ(answer.calls.size(), 1u);
  EXPECT_EQ(answer.calls[0]["id"], "call_5");
  const Json result = {{"role", "tool"}, {"content", "3"}, {"tool_call_id", "call_5"}, {"name", "add"}};
  const TokenId end = *model->tokenizer().find_token("<|im_end|>");
  EXPECT_EQ(turns.text_behind(messages, answer.message, Json::array({result}), end, Json::object()),
            kBehindCall);
  EXPECT_TRUE(turns.read_answer(model->tokenizer().encode("It is 3."), "", 0).calls.empty());
  EXPECT_TRUE(turns.read_answer(model->tokenizer().encode("<tool_call>\n{\"name\": \"add\", \"argu"), "", 0)
                  .calls.empty());
}

TEST_F(ToolTurnsTest, TemplatesThatRewriteAnswersAreRefused) {
  std::string forgetful = kToolTemplate;
  const std::string from = "{{ m.content or '' }}";
  forgetful.replace(forgetful.find(from), from.size(),
                    "{{ m.content or '' }}{% if loop.last and m.tool_calls %} {% endif %}");
  const auto model = load(model_with_tools(folder_.path() / "init", forgetful));
  EXPECT_QIAO_ERROR(ToolTurns(*model, tools()), kUnsupported, "chat template",
                    "once results of tools follow");
}

TEST_F(ToolTurnsTest, FilesOfToolsThatAreNoneAreRefused) {
  const fs::path file = folder_.path() / "tools.json";
  for (const char* text : {"{}", "[]", "[1]", R"([{"function": {}}])", R"([{"function": {"name": 1}}])"}) {
    write_file_atomically(file, text);
    EXPECT_QIAO_ERROR(read_tools_file(file), kInvalidInput, "tools.json", "expected");
  }
  write_file_atomically(file, dump_json(tools()));
  EXPECT_EQ(read_tools_file(file).size(), 1u);
}

}  // namespace
}  // namespace qiao::train
