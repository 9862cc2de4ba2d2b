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

TEST(RegexConstraintTest, SyntaxOfTheUsualDialects) {
  const struct {
    const char* pattern;
    std::vector<std::string> good, bad;
  } cases[] = {
      {R"((?P<year>\d{4})-(?<month>\d\d))", {"2024-01"}, {"24-01"}},
      {R"(a+?b*?c??(?:de){2}?)", {"adede", "aabbcdede"}, {"ade"}},
      {R"([[:alpha:]_][[:alnum:]_]*[^[:digit:]])", {"a_", "_9x"}, {"9a", "a9"}},
      {R"((?i:ab)c(?-i)D(?#a comment)(?i)e)", {"aBcDE", "abcDe"}, {"abCDe", "abcde"}},
      {R"(\x41\x{42}\u0043\u{1F642}\t)", {"ABC\U0001F642\t"}, {"ABC"}},
      {R"(\A\w+\s\W\S\z)", {"ab -x", "a_ -x"}, {"a b c"}},
      {R"(\{\}[]a\]]\.\/{,2}x{1,}y{2})", {"{}].xyy", "{}a.//xxyy"}, {"{}.xyy"}},
      {"(?s).(?-s:.)", {"\na"}, {"a\n"}},
  };
  for (const auto& [pattern, good, bad] : cases) {
    const auto grammar = compile_regex(pattern, "regex");
    for (const std::string& text : good) EXPECT_TRUE(accepts(grammar, text)) << pattern << " " << text;
    for (const std::string& text : bad) EXPECT_FALSE(accepts(grammar, text)) << pattern << " " << text;
  }
}

TEST(RegexConstraintTest, NamesWhatNoAutomatonCanDo) {
  EXPECT_QIAO_ERROR(compile_regex(R"((a)\1)", "regex"), kUnsupported, "backreference", "byte 4");
  EXPECT_QIAO_ERROR(compile_regex("a(?=b)", "regex"), kUnsupported, "look-ahead");
  EXPECT_QIAO_ERROR(compile_regex("(?<!a)b", "regex"), kUnsupported, "look-behind");
  EXPECT_QIAO_ERROR(compile_regex(R"(\bword)", "regex"), kUnsupported, "word boundary");
  EXPECT_QIAO_ERROR(compile_regex("(?m)^a$", "regex"), kUnsupported, "(?m");
  EXPECT_QIAO_ERROR(compile_regex("(?P=a)", "regex"), kUnsupported, "(?P");
  EXPECT_QIAO_ERROR(compile_regex("[[:foo:]]", "regex"), kInvalidInput, "foo");
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
  EXPECT_QIAO_ERROR(compile_grammar("root ::= a\na ::= \"x\" b", "grammar"), kInvalidInput, "\"b\"",
                    "line 2, column 11");
  EXPECT_QIAO_ERROR(compile_grammar("", "grammar"), kInvalidInput, "no rules");
  EXPECT_QIAO_ERROR(compile_grammar("root ::= \"a", "grammar"), kInvalidInput, "line 1, column 12");
  EXPECT_QIAO_ERROR(compile_grammar("root ::= \"a\" root", "grammar"), kInvalidInput, "no text");
}

TEST(GrammarConstraintTest, TheNotationOfXml) {
  const auto grammar = compile_grammar(R"ebnf(/* from the XML recommendation */
[1] element ::= '<' Name Attribute* ('/>' | '>' content '</' Name '>')
[2] content ::= (CharData | element | CharRef)*
[3] Name ::= NameStart (NameStart | [0-9#x2D#xB7])*
[4] NameStart ::= [A-Z_a-z] | [#xC0-#xD6]
[5] Attribute ::= #x20 Name '=' ('"' (Char - ["<&])* '"')
[6] CharData ::= (Char - [<&]) - ']'
[7] CharRef ::= '&#' [0-9]+ ';'
[8] Char ::= #x9 | #xA | #xD | [#x20-#xD7FF] | [#xE000-#xFFFD] | [#x10000-#x10FFFF] # any
)ebnf",
                                       "grammar");
  EXPECT_TRUE(accepts(grammar, "<a-1 b=\"]\">x &#65;<\xC3\x80/>\xC3\xA9</a>"));
  EXPECT_EQ(judge(grammar, "<a b=\"<\"/>"), "rejected at byte 6");
  EXPECT_EQ(judge(grammar, "<a>]</a>"), "rejected at byte 3");
  EXPECT_EQ(judge(grammar, "<1/>"), "rejected at byte 1");
  EXPECT_QIAO_ERROR(compile_grammar("x ::= [a-z]* - ('b' 'c')", "grammar"), kUnsupported, "line 1", "A - B");
  EXPECT_QIAO_ERROR(compile_grammar("x ::= a - 'b'\na ::= a | a", "grammar"), kUnsupported, "line 1");
  EXPECT_QIAO_ERROR(compile_grammar("start: \"a\"", "grammar"), kInvalidInput, "line 1", "Lark");
  EXPECT_QIAO_ERROR(compile_grammar("rule = \"a\" ;", "grammar"), kInvalidInput, "line 1", "ISO 14977");
  const auto digits =
      compile_grammar("bit ::= [01]\nnext ::=\n  [23]\n  | bit\nroot ::= bit next", "grammar");
  EXPECT_TRUE(accepts(digits, "03"));
  EXPECT_TRUE(accepts(digits, "11"));
  // In GBNF a dash is part of names, and #x a comment where no digit follows.
  const auto dashes = compile_grammar("#xml\nroot ::= a-b #xyz\na-b ::= [#x]", "grammar");
  EXPECT_TRUE(accepts(dashes, "#"));
  EXPECT_TRUE(accepts(dashes, "x"));
}

TEST(GrammarConstraintTest, RecursionOnEitherSide) {
  const auto left =
      compile_grammar("root ::= root \"+\" term | term\nterm ::= \"1\" | \"(\" root \")\"", "grammar");
  EXPECT_TRUE(accepts(left, "1+(1+1)+1"));
  EXPECT_EQ(judge(left, "1++"), "rejected at byte 2");
  const auto right = compile_grammar("root ::= \"a\" root | \"b\"", "grammar");
  std::string many(100'000, 'a');
  many.push_back('b');
  EXPECT_TRUE(accepts(right, many));
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
