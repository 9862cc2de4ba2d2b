#include "text/chat_template.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <ctime>
#include <string>
#include <thread>

#include "base/error.h"
#include "base/file.h"
#include "text/chat_variables.h"

namespace qiao {
namespace {

std::string render(std::string_view source, const Json& variables = Json::object(),
                   const TemplateLimits& limits = {}) {
  return ChatTemplate(source, "T", limits).render(variables, 0);
}

// The error of making and rendering; fails the test where there is none.
Error error_of(std::string_view source, const Json& variables = Json::object(),
               const TemplateLimits& limits = {}) {
  try {
    const std::string text = render(source, variables, limits);
    ADD_FAILURE() << "rendered " << text.size() << " bytes: " << text.substr(0, 100);
  } catch (const Error& e) {
    return e;
  }
  return Error(ErrorKind::kCancelled, "no error");
}

TEST(ChatTemplateTest, GivesWhatJinja2Gives) {
  const Json golden = parse_json(read_file(QIAO_TEST_DATA "/golden/jinja_cases.json"), "jinja_cases.json");
  ASSERT_GE(golden["cases"].size(), 900u);
  for (const Json& example : golden["cases"]) {
    const std::string source = example["template"];
    SCOPED_TRACE(source);
    if (example.contains("error")) {
      EXPECT_THROW(render(source, golden["variables"]), Error);
      continue;
    }
    try {
      EXPECT_EQ(render(source, golden["variables"]), example["expected"].get<std::string>());
    } catch (const Error& e) {
      ADD_FAILURE() << e.what();
    }
  }
}

TEST(ChatTemplateTest, RendersChatMl) {
  const char* source =
      "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% "
      "endfor %}"
      "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
  const Json variables = {{"messages", {{{"role", "user"}, {"content", "Hi"}}}},
                          {"add_generation_prompt", true}};
  EXPECT_EQ(render(source, variables), "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
}

TEST(ChatTemplateTest, KeepsItsSource) { EXPECT_EQ(ChatTemplate("a{{ b }}").source(), "a{{ b }}"); }

TEST(ChatTemplateTest, ErrorsNameTheLine) {
  EXPECT_STREQ(error_of("a\n\n{{ 1 + }}").what(), "T: line 3: unexpected 'end of print statement'");
  EXPECT_STREQ(error_of("a\n{{ raise_exception('No!') }}").what(), "T: line 2: No!");
  EXPECT_STREQ(error_of("{{ x.y }}").what(), "T: line 1: 'x' is undefined");
  EXPECT_STREQ(error_of("\n{{ {}.a.b }}").what(), "T: line 2: 'dict object' has no attribute 'a'");
  EXPECT_STREQ(error_of("{% macro m() %}\n{{ 1 + 'a' }}{% endmacro %}\n\n{{ m() }}").what(),
               "T: line 2: unsupported operand type(s) for +: 'int' and 'str'");
}

TEST(ChatTemplateTest, RefusesOtherTemplatesAsUnsupported) {
  for (const char* source : {"{% include 'a' %}", "{% extends 'a' %}", "{% import 'a' as b %}",
                             "{% from 'a' import b %}", "{% autoescape true %}{% endautoescape %}"}) {
    EXPECT_EQ(error_of(source).kind(), ErrorKind::kUnsupported) << source;
  }
  EXPECT_EQ(error_of("{{ {}|xmlattr }}").kind(), ErrorKind::kUnsupported);
  EXPECT_EQ(error_of("{{ 'a'.encode() }}").kind(), ErrorKind::kUnsupported);
}

TEST(ChatTemplateTest, SandboxHidesInternalsAndForbidsChanges) {
  EXPECT_EQ(render("{{ ''.__class__ is defined }}{{ [].append is defined }}"), "FalseFalse");
  EXPECT_THROW(render("{{ ''.__class__.__mro__ }}"), Error);
  EXPECT_THROW(render("{{ [].append(1) }}"), Error);
  EXPECT_THROW(render("{{ {}.update({}) }}"), Error);
  EXPECT_THROW(render("{{ '{0.__class__.__mro__}'.format(1) }}"), Error);
}

TEST(ChatTemplateTest, ShowsTheGivenTime) {
  setenv("TZ", "UTC", 1);
  tzset();
  EXPECT_EQ(ChatTemplate("{{ strftime_now('%d %b %Y %H:%M:%S%z') }}").render(Json::object(), 1700000000),
            "14 Nov 2023 22:13:20");
  EXPECT_EQ(ChatTemplate("{{ strftime_now('') }}|{{ strftime_now('%%f') }}").render(Json::object(), 0),
            "|%f");
}

TEST(ChatTemplateTest, IntegersThatDoNotFitAreErrorsNotWrapped) {
  for (const char* source :
       {"{{ 9223372036854775807 + 1 }}", "{{ -9223372036854775807 - 2 }}", "{{ 2 ** 64 }}",
        "{{ 4611686018427387904 * 2 }}", "{{ 1e30 | int }}", "{{ '99999999999999999999' | int }}",
        "{{ -(-9223372036854775807 - 1) }}", "{{ (-9223372036854775807 - 1) // -1 }}",
        "{{ (-9223372036854775807 - 1) | abs }}"}) {
    EXPECT_EQ(error_of(source).kind(), ErrorKind::kTooLarge) << source;
  }
  EXPECT_EQ(render("{{ (-9223372036854775807 - 1) % -1 }}"), "0");
  EXPECT_EQ(render("{{ x }} {{ [x]|tojson }}", {{"x", UINT64_MAX}}),
            "18446744073709551615 [18446744073709551615]");
  EXPECT_EQ(error_of("{{ x + 1 }}", {{"x", UINT64_MAX}}).kind(), ErrorKind::kTooLarge);
}

TEST(ChatTemplateTest, RenderIsSafeFromManyThreads) {
  const ChatTemplate source(
      "{% macro m(x) %}<{{ x }}{{ 'c' * 3 }}>{% endmacro %}{% for x in l %}{{ m(x) }}{% endfor %}");
  const Json variables = {{"l", {1, 2, 3}}};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int turn = 0; turn < 50; ++turn) EXPECT_EQ(source.render(variables), "<1ccc><2ccc><3ccc>");
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(ChatTemplateTest, MovedFromAndToWorks) {
  ChatTemplate a("a{{ x }}");
  ChatTemplate b("b");
  b = std::move(a);
  const ChatTemplate c(std::move(b));
  EXPECT_EQ(c.render({{"x", 1}}), "a1");
}

TEST(ChatTemplateLimitsTest, RefusesASourceOverTheLimit) {
  EXPECT_EQ(error_of(std::string(100, 'a'), Json::object(), {.max_source_bytes = 99}).kind(),
            ErrorKind::kTooLarge);
}

TEST(ChatTemplateLimitsTest, EndlessWorkEndsAtTheStepLimit) {
  const TemplateLimits limits{.max_steps = 10000};
  for (const char* source :
       {"{% for a in range(100000) %}{% endfor %}",
        "{% for a in range(1000) %}{% for b in range(1000) %}{% for c in range(1000) %}{% endfor %}{% endfor "
        "%}{% endfor %}",
        "{{ range(100000)|list|length }}", "{{ range(100000)|sum }}", "{{ range(90000)|map('string')|join }}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(50) }}"}) {
    EXPECT_EQ(error_of(source, Json::object(), limits).kind(), ErrorKind::kTooLarge) << source;
  }
}

TEST(ChatTemplateLimitsTest, LongTextIsRefusedBeforeItIsBuilt) {
  const TemplateLimits limits{.max_output_bytes = 1000};
  for (const char* source :
       {"{{ 'a' * 1000000000000 }}", "{{ ('a' * 999 ~ 'bc') | length }}", "{{ 'a'.center(100000000000) }}",
        "{{ '%0100000000d' % 5 }}", "{{ '{:>100000000}'.format(1) }}", "{{ 'a'.ljust(10000) }}",
        "{{ '5'.zfill(10000) }}", "{{ 'a' | indent(100000, true) }}",
        "{{ 1.5 | round(3) ~ '%.9999f' % 1.5 }}", "{% for i in range(2000) %}x{% endfor %}",
        "{% set x %}{% for i in range(2000) %}x{% endfor %}{% endset %}", "{{ (['ab'] * 900) | join('-') }}",
        "{{ 'aaaaaaaaaa'.replace('', 'x' * 500) }}", "{{ [1] | tojson(indent=100000) }}",
        "{{ [0] * 1000000000000 }}", "{{ ('\t' * 500).expandtabs(1000) }}"}) {
    EXPECT_EQ(error_of(source, Json::object(), limits).kind(), ErrorKind::kTooLarge) << source;
  }
  EXPECT_EQ(render("{{ 'a' * 1000 }}", Json::object(), limits).size(), 1000u);
}

TEST(ChatTemplateLimitsTest, ManyValuesAliveAreRefused) {
  const TemplateLimits limits{.max_output_bytes = 1 << 20};
  EXPECT_EQ(error_of("{% set ns = namespace(l=[]) %}{% for i in range(100000) %}"
                     "{% set ns.l = ns.l + [('a' * 1000000) ~ i] %}{% endfor %}",
                     Json::object(), limits)
                .kind(),
            ErrorKind::kTooLarge);
  // A list of lists that share: 2^60 elements when printed or compared.
  const std::string doubled =
      "{% set ns = namespace(l=[1], m=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}"
      "{% set ns.m = [ns.m, ns.m] %}{% endfor %}";
  const TemplateLimits few{.max_output_bytes = 1 << 20, .max_steps = 100000};
  EXPECT_EQ(error_of(doubled + "{{ ns.l }}", Json::object(), few).kind(), ErrorKind::kTooLarge);
  EXPECT_EQ(error_of(doubled + "{{ ns.l | tojson }}", Json::object(), few).kind(), ErrorKind::kTooLarge);
  EXPECT_EQ(error_of(doubled + "{{ ns.l == ns.m }}", Json::object(), few).kind(), ErrorKind::kTooLarge);
}

TEST(ChatTemplateLimitsTest, DeepSourceIsRefused) {
  const auto nested = [](const std::string& open, const std::string& close, int count) {
    std::string source;
    for (int i = 0; i < count; ++i) source += open;
    source += "1";
    for (int i = 0; i < count; ++i) source += close;
    return source;
  };
  for (const int count : {300, 50000}) {
    for (const std::string& source :
         {"{{ " + nested("(", ")", count) + " }}", "{{ " + nested("[", "]", count) + " }}",
          "{{ " + nested("{1:", "}", count) + " }}", "{{ " + nested("-", "", count) + " }}",
          "{{ " + nested("not ", "", count) + " }}", "{{ " + nested("x[", "]", count) + " }}",
          "{{ " + nested("f(", ")", count) + " }}", nested("{% if 1 %}", "{% endif %}", count),
          nested("{% for x in [1] %}", "{% endfor %}", count),
          "{{ 1" + nested(" if 1 else 1", "", count) + " }}"}) {
      EXPECT_EQ(error_of(source).kind(), ErrorKind::kTooLarge) << source.substr(0, 40) << " × " << count;
    }
  }
  for (const std::string& source :
       {"{{ 1" + nested(" + 1", "", 50000) + " }}", "{{ x" + nested(".a", "", 50000) + " }}",
        "{{ x" + nested("|e", "", 50000) + " }}", "{{ x" + nested("()", "", 50000) + " }}"}) {
    EXPECT_THROW(ChatTemplate{source}, Error) << source.substr(0, 40);
  }
}

TEST(ChatTemplateLimitsTest, DeepCallsAndValuesAreRefused) {
  EXPECT_EQ(error_of("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}").kind(), ErrorKind::kTooLarge);
  EXPECT_EQ(error_of("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}").kind(), ErrorKind::kTooLarge);
  EXPECT_EQ(
      error_of("{% set ns = namespace(x=1) %}{% for i in range(1000) %}{% set ns.x = [ns.x] %}{% endfor %}")
          .kind(),
      ErrorKind::kTooLarge);
  EXPECT_EQ(error_of("{% set ns = namespace(x=[]) %}{% for i in range(1000) %}{% set ns.x = ns.x|map('e') "
                     "%}{% endfor %}")
                .kind(),
            ErrorKind::kTooLarge);
  EXPECT_EQ(render("{% macro m(n) %}{% if n %}{{ m(n - 1) }}{% endif %}.{% endmacro %}{{ m(150) | length }}"),
            "151");
  // A ring and a long chain of namespaces: neither leaks nor recurses when freed.
  EXPECT_EQ(render("{% set ns = namespace() %}{% set ns.me = [ns] %}{% for i in range(50000) %}{% set o = "
                   "namespace(p=ns) %}"
                   "{% set ns.me = o %}{% endfor %}ok"),
            "ok");
  EXPECT_EQ(render("{% set ns = namespace(f=1) %}{% macro m(x) %}{% macro i() %}{{ x }}{% endmacro %}{% set "
                   "ns.f = i %}"
                   "{% endmacro %}{{ m(7) }}{{ ns.f() }}"),
            "7");
}

TEST(ChatTemplateLimitsTest, DeepVariablesAreRefused) {
  Json deep = 1;
  for (int i = 0; i < 300; ++i) deep = Json::array({deep});
  EXPECT_EQ(error_of("{{ x }}", {{"x", deep}}).kind(), ErrorKind::kTooLarge);
}

TEST(ChatTemplateLimitsTest, BrokenSourcesAreErrors) {
  EXPECT_STREQ(error_of("ab\xff{{ x }}").what(), "T: byte 2: not valid UTF-8");
  EXPECT_STREQ(error_of("\xed\xa0\x80").what(), "T: byte 0: not valid UTF-8");
  for (const std::string& source :
       {std::string("{{"), std::string("{%"), std::string("{#"), std::string("{{ '"), std::string("{{ '\\"),
        std::string("{{ \"\\x4\" }}"), std::string("{{ '\\ud800' }}"), std::string("{{ a\0b }}", 9),
        std::string("{{ $ }}"), std::string("{% raw %}"), std::string("{% endif %}"),
        std::string("{{ 99999999999999999999 }}"), std::string("{{ ] }}"), std::string("{% for %}")}) {
    EXPECT_THROW(ChatTemplate{source}, Error) << source;
  }
  EXPECT_EQ(render(std::string("a\0b{{ '\0' }}", 12)), std::string("a\0b\0", 4));
  EXPECT_EQ(render("{{ x }}", {{"x", "a\xff"}}), "a\xEF\xBF\xBD");
}

TEST(ChatTemplateLimitsTest, VariablesMustBeAnObject) {
  EXPECT_EQ(error_of("a", Json::array()).kind(), ErrorKind::kInvalidInput);
}

TEST(ChatTemplateLimitsTest, AThousandMessagesTakeLittleTime) {
  Json messages = Json::array();
  for (int i = 0; i < 1000; ++i) {
    messages.push_back({{"role", i % 2 ? "assistant" : "user"}, {"content", std::string(200, 'x')}});
  }
  const ChatTemplate source(
      "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ '<' + m['role'] + '>' "
      "}}"
      "{% if m.tool_calls is defined and m.tool_calls %}T{% endif %}{{ m.content | trim }}\n{% endfor %}{{ "
      "ns.n }}");
  const std::clock_t start = std::clock();
  const std::string text = source.render({{"messages", messages}});
  const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  EXPECT_EQ(text.size(), 500 * (200 + 7) + 500 * (200 + 12) + 4u);
  EXPECT_LT(seconds,
            0.5);  // measured: a few milliseconds; the bound allows for sanitizers
}

TEST(ChatVariablesTest, CompletesAsTransformersDoes) {
  const Json completed = complete_chat_variables(
      {{"messages", {{{"role", "user"}, {"content", "a"}}, {{"role", "assistant"}, {"reasoning", "why"}}}}});
  EXPECT_EQ(dump_json(completed["messages"]),
            R"([{"role":"user","content":"a"},)"
            R"({"thinking":"why","role":"assistant","reasoning":"why","reasoning_content":"why"}])");
  EXPECT_TRUE(completed["tools"].is_null());
  EXPECT_TRUE(completed["documents"].is_null());
  EXPECT_EQ(completed["add_generation_prompt"], false);
  EXPECT_THROW(complete_chat_variables({{"messages", "x"}}), Error);
  EXPECT_THROW(complete_chat_variables({{"messages", {1}}}), Error);
  EXPECT_THROW(complete_chat_variables(Json::object()), Error);
}

}  // namespace
}  // namespace qiao
