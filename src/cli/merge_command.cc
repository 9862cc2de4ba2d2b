#include <cstdio>
#include <memory>
#include <string>

#include "base/error.h"
#include "cli/commands.h"
#include "cli/model_argument.h"
#include "convert/hugging_face.h"

namespace qiao::cli {
namespace {

struct MergeFlags {
  std::string base, lora, out, dtype;
};

void merge(const MergeFlags& flags) {
  const auto files = ModelFiles::open(resolve_model(flags.base, true));
  const auto lora = LoraFiles::open(flags.lora);
  convert::HuggingFaceOptions options{.dtype = {}, .lora = lora.get()};
  if (!flags.dtype.empty()) options.dtype = dtype_named(flags.dtype);
  convert::write_hugging_face(*files, flags.out, options);
  fmt::print(stderr, "{}: {} modules merged\n", flags.out, lora->pairs().size());
}

}  // namespace

void add_merge_command(CLI::App& app) {
  const auto flags = std::make_shared<MergeFlags>();
  CLI::App* command =
      app.add_subcommand("merge", "Merge a LoRA adapter into its base: one model in its place");
  command
      ->add_option("--base", flags->base,
                   "Model that the adapter is for: a Hugging Face directory or a GGUF file")
      ->required()
      ->type_name("MODEL");
  command->add_option("--lora", flags->lora, "Adapter: a directory of PEFT, RUN/model, or a GGUF adapter")
      ->required()
      ->type_name("DIR");
  command->add_option("--out", flags->out, "Hugging Face directory to write")->required()->type_name("DIR");
  command
      ->add_option("--dtype", flags->dtype,
                   "Of the weights: f32, f16 or bf16 [as the base has them; bf16 where it is a GGUF file]")
      ->check(CLI::IsMember({"f32", "f16", "bf16"}))
      ->type_name("NAME");
  command->footer(
      "Each matrix becomes W + scale * B A, summed in float64 and rounded once; all else stays byte for "
      "byte.\n"
      "Examples:\n"
      "  qiao merge --base DIR --lora RUN/model --out MERGED\n"
      "  qiao merge --base model.gguf --lora RUN/model --out MERGED --dtype f16\n"
      "  qiao serve -m MERGED");
  command->callback([flags] { merge(*flags); });
}

}  // namespace qiao::cli
