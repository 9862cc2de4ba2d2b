// Texts put together of parts, as bytes and as tokens of vocabularies with and without control tokens.
#include "constrain/structure.h"

#include <gtest/gtest.h>

#include <random>

#include "constrain_support.h"
#include "support/expect_error.h"

namespace qiao {
namespace {

using constrain::compile_structure;
using constrain::ConstraintState;
using constrain::StopFinder;
using constrain::Structure;
using constrain::TokenTable;
using testing::accepts;
using testing::judge;

std::shared_ptr<constrain::CompiledGrammar> compiled(const Structure& structure) {
  return compile_structure(structure, "tools");
}

Structure call_of_tool() {
  return Structure::sequence(
      {Structure::literal("<tool_call>\n{\"name\": "),
       Structure::choice({Structure::literal("\"add\""), Structure::literal("\"echo\"")}),
       Structure::literal(", \"arguments\": "),
       Structure::json(parse_json(
           R"({"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]})", "schema")),
       Structure::literal("}\n</tool_call>")});
}

// Text, and any number of calls in it.
Structure auto_calls() {
  const Structure text = Structure::free_text({"<tool_call>"});
  return Structure::sequence({text, Structure::repeat(Structure::sequence({call_of_tool(), text}), 0, -1)});
}

TEST(StructureTest, FreeTextWithCalls) {
  const auto grammar = compiled(auto_calls());
  const std::string call = "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool_call>";
  EXPECT_TRUE(accepts(grammar, ""));
  EXPECT_TRUE(accepts(grammar, "Nothing to call: 1 < 2, <tool_cal, \xC3\xA9."));
  EXPECT_TRUE(accepts(grammar, call));
  EXPECT_TRUE(accepts(grammar, "Two calls.\n<<tool_" + call + "\n" + call + " done"));
  EXPECT_EQ(judge(grammar, "text <tool_call>{"), "rejected at byte 16");
  EXPECT_EQ(judge(grammar, call + "<tool_call>x"), "rejected at byte " + std::to_string(call.size() + 11));
  EXPECT_EQ(judge(grammar, "<tool_call>\n{\"name\": \"sub\""), "rejected at byte 22");
  EXPECT_EQ(judge(grammar, "a\xFF"), "rejected at byte 1");
  EXPECT_EQ(judge(grammar, "a\xC3("), "rejected at byte 2");
  EXPECT_FALSE(accepts(grammar, "a\xC3"));
}

TEST(StructureTest, ForcesWhatIsForced) {
  ConstraintState state(
      compiled(Structure::sequence({Structure::free_text({"<tool_call>"}), call_of_tool()})));
  EXPECT_EQ(state.forced_bytes(), "");
  EXPECT_EQ(state.accept_bytes("hm <tool_call>"), 14u);
  EXPECT_EQ(state.forced_bytes(), "\n{\"name\": \"");
  EXPECT_EQ(state.accept_bytes("\n{\"name\": \"e"), 12u);
  EXPECT_EQ(state.forced_bytes(), "cho\", \"arguments\": {\"a\": ");
  EXPECT_FALSE(state.can_end());
  EXPECT_EQ(state.accept_bytes("cho\", \"arguments\": {\"a\": 2}}\n</tool_call>"), 41u);
  EXPECT_TRUE(state.must_end());
}

TEST(StructureTest, TheStopIsTheFirstOne) {
  const auto grammar = compiled(Structure::sequence({Structure::free_text({"```"}), Structure::literal("```"),
                                                     Structure::regex("[a-z]+"), Structure::literal("```")}));
  EXPECT_TRUE(accepts(grammar, "see `x` ``y`` ```code```"));
  EXPECT_TRUE(accepts(grammar, "```code```"));
  // "`" and "```" after it is "```" and "`".
  EXPECT_EQ(judge(grammar, "````code```"), "rejected at byte 3");
  // At the end of an answer it may stand.
  const auto open = compiled(
      Structure::sequence({Structure::free_text({"```"}),
                           Structure::repeat(Structure::sequence({Structure::literal("```x```")}), 0, 1)}));
  EXPECT_TRUE(accepts(open, "a `b`"));
  EXPECT_TRUE(accepts(open, "a `b` ```x```"));
  EXPECT_FALSE(accepts(open, "a `b````x```"));
}

TEST(StructureTest, StopsThatShareTheirBeginnings) {
  const auto grammar = compiled(
      Structure::sequence({Structure::free_text({"<a>", "<ab>", "ab>c"}),
                           Structure::choice({Structure::literal("<a>1"), Structure::literal("<ab>2")})}));
  EXPECT_TRUE(accepts(grammar, "x<a<a>1"));
  EXPECT_TRUE(accepts(grammar, "x<<ab>2"));
  EXPECT_EQ(judge(grammar, "<a>2"), "rejected at byte 3");
  EXPECT_EQ(judge(grammar, "ab>c<a>1"), "rejected at byte 3");
}

TEST(StructureTest, RepetitionsAndChoices) {
  const auto grammar = compiled(Structure::repeat(
      Structure::choice({Structure::literal("ab"), Structure::grammar("root ::= \"(\" root? \")\""),
                         Structure::json(parse_json(R"({"type":"integer"})", "schema"))}),
      2, 3));
  for (const char* good : {"abab", "ab(())ab", "()12ab", "ab7ab"})
    EXPECT_TRUE(accepts(grammar, good)) << good;
  for (const char* bad : {"ab", "abababab", "(ab)ab", ""}) EXPECT_FALSE(accepts(grammar, bad)) << bad;
}

// Every byte, some text, and at the end of the list three control tokens and the end.
std::shared_ptr<const TokenTable> make_vocabulary() {
  std::vector<std::string> tokens;
  for (int b = 0; b < 256; ++b) tokens.emplace_back(1, static_cast<char>(b));
  const char* parts[] = {"[CALL]", "[",    "CALL",     "]", "`", "``", "a",        " b",       "\n",
                         "\xC3",   "\xA9", "{\"x\": ", "1", "}", "\"", "\xE2\x82", "\xED\xA0", "\xF0\x9F"};
  std::mt19937 random(11);
  for (int i = 0; i < 2000; ++i) {
    std::string token;
    for (size_t n = 1 + random() % 3; n > 0; --n) token += parts[random() % std::size(parts)];
    tokens.push_back(token);
  }
  tokens.push_back(TokenTable::spelling_of("[CALL]"));
  tokens.push_back(TokenTable::spelling_of("[OTHER]"));
  tokens.push_back("<end>");
  const auto end = static_cast<TokenId>(tokens.size() - 1);
  return std::make_shared<TokenTable>(tokens, std::vector<TokenId>{end});
}

Structure control_calls(const std::string& control) {
  const Structure text = Structure::free_text({control, "```"});
  return Structure::sequence(
      {text, Structure::repeat(
                 Structure::sequence(
                     {Structure::token(control),
                      Structure::json(parse_json(R"({"required":["x"],"type":"object"})", "s")), text}),
                 0, -1)});
}

TEST(StructureTest, ControlTokensAreAtoms) {
  const auto table = make_vocabulary();
  const TokenId call = *table->control_token("[CALL]"), other = *table->control_token("[OTHER]");
  const auto grammar = compiled(control_calls("[CALL]"));
  ConstraintState state(grammar, table);
  EXPECT_FALSE(state.accept_token(other));
  EXPECT_EQ(state.accept_bytes("so [CALL"), 8u);  // as text it is only text, and a stop
  EXPECT_EQ(state.accept_bytes("]"), 0u);
  EXPECT_TRUE(state.accept_token(call));
  EXPECT_EQ(state.forced_bytes(), "{\"x\": ");
  EXPECT_FALSE(state.accept_token(call));
  EXPECT_EQ(state.accept_bytes("{\"x\": 1}"), 8u);
  EXPECT_TRUE(state.can_end());
  EXPECT_TRUE(state.accept_token(call));
  // A vocabulary without the token spells it.
  ConstraintState spelled(compiled(control_calls("[NONE]")), table);
  EXPECT_EQ(spelled.accept_bytes("so [NONE]"), 9u);
  EXPECT_EQ(spelled.forced_bytes(), "{\"x\": ");
  EXPECT_EQ(spelled.accept_bytes("{\"x\": 1} [NONE]{"), 16u);
  // What must come next may be a control token.
  ConstraintState forced(
      compiled(Structure::sequence({Structure::token("[OTHER]"), Structure::literal("a")})), table);
  EXPECT_EQ(forced.forced_bytes(), TokenTable::spelling_of("[OTHER]") + "a");
  EXPECT_TRUE(forced.accept_token(other));
}

TEST(StructureTest, MasksHoldToTheDefinition) {
  const auto table = make_vocabulary();
  std::mt19937 random(5);
  std::vector<uint32_t> mask(table->words());
  const Structure structures[] = {control_calls("[CALL]"), control_calls("[NONE]"), auto_calls(),
                                  Structure::free_text({"aa", "\xC3\xA9", "` b"}), Structure::free_text({})};
  for (const Structure& structure : structures) {
    const auto grammar = compiled(structure);
    for (int run = 0; run < 6; ++run) {
      ConstraintState state(grammar, table);
      for (int step = 0; step < 20 && !state.ended(); ++step) {
        state.mask(mask);
        std::vector<TokenId> allowed;
        for (TokenId id = 0; id < table->size(); ++id) {
          const bool bit = (mask[static_cast<size_t>(id) / 32] >> (id % 32) & 1) != 0;
          if (bit && (!table->is_end(id) || random() % 20 == 0)) allowed.push_back(id);
          if (table->is_end(id)) {
            ASSERT_EQ(bit, state.can_end());
            continue;
          }
          ConstraintState copy = state;
          ASSERT_EQ(copy.accept_token(id), bit) << "token " << table->bytes_of(id) << " at step " << step;
        }
        ASSERT_FALSE(allowed.empty()) << "nothing may follow at step " << step;
        ASSERT_TRUE(state.accept_token(allowed[random() % allowed.size()]));
      }
    }
  }
}

TEST(StructureTest, NamesWhatIsWrong) {
  EXPECT_QIAO_ERROR(compiled(Structure::choice({})), kInvalidInput, "tools", "choice");
  EXPECT_QIAO_ERROR(compiled(Structure::free_text({""})), kInvalidInput, "tools", "empty");
  EXPECT_QIAO_ERROR(compiled(Structure::literal("\xFF[CALL]\xFE")), kInvalidInput, "UTF-8");
  EXPECT_QIAO_ERROR(compiled(Structure::json(Json{{"uniqueItem", true}})), kUnsupported, "tools",
                    "uniqueItem");
  EXPECT_QIAO_ERROR(compiled(Structure::regex("(a")), kInvalidInput, "tools", "byte 2");
  Structure deep = Structure::literal("x");
  for (int i = 0; i < 100; ++i) deep = Structure::choice({deep});
  EXPECT_QIAO_ERROR(compiled(deep), kTooLarge, "nested");
  Structure many = Structure::literal("x");
  for (int i = 0; i < 4; ++i) many = Structure::repeat(many, 100, 100);
  EXPECT_QIAO_ERROR(compiled(many), kTooLarge, "repeat less");
}

TEST(StopFinderTest, FindsTheFirstOfSeveral) {
  const StopFinder finder({"abcd", "bc", "\xC3\xA9"}, "stops");
  EXPECT_EQ(finder.find(StopFinder::kStart, "xabcd"), 4u);  // "bc" inside "abcd"
  EXPECT_EQ(finder.find(StopFinder::kStart, "ababd"), 0u);
  EXPECT_EQ(finder.find(StopFinder::kStart, "a\xC3\xA9"), 3u);
  uint16_t at = StopFinder::kStart;
  for (const char c : std::string_view("xab")) at = finder.next(at, static_cast<uint8_t>(c));
  EXPECT_EQ(finder.depth(at), 2u);
  EXPECT_EQ(finder.find(at, "c"), 1u);
}

}  // namespace
}  // namespace qiao
