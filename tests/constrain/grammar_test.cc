// Expressions, grammars and choices.
#include <gtest/gtest.h>

#include "constrain_support.h"
#include "support/expect_error.h"

namespace qiao {
namespace {

using constrain::compile_choice;
using constrain::compile_grammar;
using constrain::compile_regex;
using testing::accepts;
using testing::judge;

TEST(RegexConstraintTest, MatchesTheWholeText) {
  const auto date = compile_regex(R"(\d{4}-(0[1-9]|1[0-2])-[0-3]\d)", "regex");
  EXPECT_TRUE(accepts(date, "2024-12-31"));
  EXPECT_EQ(judge(date, "2024-13-31"), "rejected at byte 6");
  EXPECT_EQ(judge(date, "2024-12-3"), "rejected at byte 9");
  EXPECT_EQ(judge(date, "2024-12-311"), "rejected at byte 10");
  const auto word = compile_regex(R"(^(?:\p{Lu}\p{Ll}+|[^\x00-\x7f]?)$)", "regex");
  for (const char* good : {"Ärger", "Hello", "é", "", "\U0001F642"}) EXPECT_TRUE(accepts(word, good)) << good;
  for (const char* bad : {"hello", "H", "éé", "\xC3"}) EXPECT_FALSE(accepts(word, bad)) << bad;
  const auto cased = compile_regex("(?i)yes|NO", "regex");
  for (const char* good : {"yes", "YES", "no", "nO"}) EXPECT_TRUE(accepts(cased, good)) << good;
  const auto anchors = compile_regex("a|^b$|c^d|e$f", "regex");
  EXPECT_TRUE(accepts(anchors, "a"));
  EXPECT_TRUE(accepts(anchors, "b"));
  EXPECT_EQ(judge(anchors, "cd"), "rejected at byte 0");  // no text leads there
  EXPECT_EQ(judge(anchors, "ef"), "rejected at byte 0");
}

TEST(RegexConstraintTest, NamesWhatNoAutomatonCanDo) {
  EXPECT_QIAO_ERROR(compile_regex(R"((a)\1)", "regex"), kUnsupported, "backreference", "byte 4");
  EXPECT_QIAO_ERROR(compile_regex("a(?=b)", "regex"), kUnsupported, "look-ahead");
  EXPECT_QIAO_ERROR(compile_regex("(?<!a)b", "regex"), kUnsupported, "look-behind");
  EXPECT_QIAO_ERROR(compile_regex(R"(\bword)", "regex"), kUnsupported, "word boundary");
  EXPECT_QIAO_ERROR(compile_regex("(ab", "regex"), kInvalidInput, "byte 3");
  EXPECT_QIAO_ERROR(compile_regex("[z-a]", "regex"), kInvalidInput, "range");
  EXPECT_QIAO_ERROR(compile_regex("a**", "regex"), kInvalidInput, "quantifier");
  EXPECT_QIAO_ERROR(compile_regex(R"(\p{Greek})", "regex"), kUnsupported, "Greek");
  EXPECT_QIAO_ERROR(compile_regex("[^\\s\\S]", "regex"), kInvalidInput, "no text");
}

TEST(GrammarConstraintTest, TheArithmeticOfLlamaCppsPage) {
  const auto grammar = compile_grammar(R"gbnf(root  ::= (expr "=" ws term "\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \t\n]*
)gbnf",
                                       "grammar");
  EXPECT_TRUE(accepts(grammar, "1+2=3\n"));
  EXPECT_TRUE(accepts(grammar, "(a1 *(2-b))/3 = x_9 \n7=7\n"));
  EXPECT_EQ(judge(grammar, "1+*2=3\n"), "rejected at byte 2");
  EXPECT_EQ(judge(grammar, "(1=2\n"), "rejected at byte 2");
}

TEST(GrammarConstraintTest, SyntaxOfBothKinds) {
  const auto grammar = compile_grammar(
      "# a comment\nroot ::= greeting{1,2} /* another */ (\"!\" | '?')?\n"
      "greeting ::=\n  \"hi\" #x20 |\n  \"ho\\x20\" | [^\\x00-\\x7F\"-]",
      "grammar");
  EXPECT_TRUE(accepts(grammar, "hi ho !"));
  EXPECT_TRUE(accepts(grammar, "é?"));
  EXPECT_FALSE(accepts(grammar, "hi hi hi "));
  EXPECT_QIAO_ERROR(compile_grammar("root ::= missing", "grammar"), kInvalidInput, "missing");
  EXPECT_QIAO_ERROR(compile_grammar("start ::= \"a\"", "grammar"), kInvalidInput, "root");
  EXPECT_QIAO_ERROR(compile_grammar("root ::= \"a", "grammar"), kInvalidInput, "line 1, column 12");
  EXPECT_QIAO_ERROR(compile_grammar("root ::= \"a\" root", "grammar"), kInvalidInput, "no text");
}

TEST(GrammarConstraintTest, RecursionOnEitherSide) {
  const auto left =
      compile_grammar("root ::= root \"+\" term | term\nterm ::= \"1\" | \"(\" root \")\"", "grammar");
  EXPECT_TRUE(accepts(left, "1+(1+1)+1"));
  EXPECT_EQ(judge(left, "1++"), "rejected at byte 2");
  const auto right = compile_grammar("root ::= \"a\" root | \"b\"", "grammar");
  EXPECT_TRUE(accepts(right, std::string(100'000, 'a') + "b"));
  EXPECT_QIAO_ERROR(compile_grammar("root ::= a \"x\"\na ::= root | \"y\"", "grammar"), kUnsupported,
                    "left recursion");
  const auto ambiguous = compile_grammar("root ::= \"a\" | \"a\" root | \"a\" root \"b\"", "grammar");
  EXPECT_TRUE(accepts(ambiguous, std::string(50, 'a') + std::string(20, 'b')));
}

TEST(ChoiceConstraintTest, OneOfTheList) {
  const auto choice = compile_choice({"positive", "negative", "neutral", "näh"}, "choice");
  for (const char* good : {"positive", "negative", "neutral", "näh"})
    EXPECT_TRUE(accepts(choice, good)) << good;
  EXPECT_EQ(judge(choice, "nex"), "rejected at byte 2");
  constrain::ConstraintState state(choice);
  EXPECT_EQ(state.accept_bytes("neg"), 3u);
  EXPECT_EQ(state.forced_bytes(), "ative");
  EXPECT_QIAO_ERROR(compile_choice({}, "choice"), kInvalidInput, "choice");
}

}  // namespace
}  // namespace qiao
