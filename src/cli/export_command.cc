#include <cstdio>
#include <memory>
#include <string>

#include "base/error.h"
#include "cli/commands.h"
#include "cli/model_argument.h"
#include "convert/gguf.h"
#include "convert/hugging_face.h"

namespace qiao::cli {
namespace {

struct ExportFlags {
  std::string model, hugging_face, dtype, gguf;
  convert::GgufOptions options;
};

void export_model(const ExportFlags& flags) {
  const auto files = ModelFiles::open(resolve_model(flags.model, true));
  if (!flags.gguf.empty()) return convert::write_gguf_model(*files, flags.gguf, flags.options);
  convert::HuggingFaceOptions options;
  if (!flags.dtype.empty()) options.dtype = dtype_named(flags.dtype);
  convert::write_hugging_face(*files, flags.hugging_face, options);
}

}  // namespace

void add_export_command(CLI::App& app) {
  const auto flags = std::make_shared<ExportFlags>();
  CLI::App* command = app.add_subcommand("export", "Write a model in another format");
  command->add_option("-m,--model,model", flags->model, kModelHelp)->required()->type_name("MODEL");
  CLI::Option_group* format = command->add_option_group("Format");
  format
      ->add_option("--hf", flags->hugging_face,
                   "Hugging Face directory to write: configuration, tokenizer, chat template, weights")
      ->type_name("DIR");
  format->add_option("--gguf", flags->gguf, "GGUF file to write, of a Hugging Face directory")
      ->type_name("FILE");
  format->require_option(1);
  command
      ->add_option("--type", flags->options.kind,
                   fmt::format("Of --gguf's matrices: {} [F16]", fmt::join(convert::gguf_kinds(), ", ")))
      ->check(CLI::IsMember(convert::gguf_kinds(), CLI::ignore_case))
      ->type_name("TYPE");
  command->add_option("-t,--threads", flags->options.threads, "Threads; 0: as many as this process may use")
      ->type_name("N");
  command
      ->add_option(
          "--dtype", flags->dtype,
          "Of --hf's weights: f32, f16 or bf16 [as the model has them; bf16 where it is a GGUF file]")
      ->check(CLI::IsMember({"f32", "f16", "bf16"}))
      ->type_name("NAME");
  command->footer(
      "A GGUF file's blocks are unpacked and rounded to --dtype: such a directory can be trained. Types of\n"
      "matrices are those that llama-quantize gives them.\n"
      "Examples:\n"
      "  qiao export -m smollm2 --hf smollm2-bf16\n"
      "  qiao export -m model.gguf --hf DIR --dtype f32\n"
      "  qiao export -m RUN/model --gguf model.gguf --type Q4_K_M");
  command->callback([flags] { export_model(*flags); });
}

}  // namespace qiao::cli
