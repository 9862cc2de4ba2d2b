#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <optional>
#include <sstream>
#include <thread>

#include "base/error.h"
#include "base/file.h"
#include "base/units.h"
#include "cli/commands.h"
#include "cli/handover.h"
#include "cli/model_argument.h"
#include "cli/model_flags.h"
#include "cli/ranks.h"
#include "serve/server.h"

namespace qiao::cli {
namespace {

struct ServeFlags {
  ModelFlags model;
  serve::ServerOptions server;
  int64_t slots = 32;
  int64_t kv_pages = 0, page_tokens = 32, max_queued = 1024;
  double memory_share = 0;
  bool share_prefixes = false, no_prefix_cache = false;
  std::optional<bool> run_ahead;
  int64_t max_body_mib = 64;
  int64_t keep_responses_mib = 64;
  int drain_seconds = 30;
  std::string cache_directory;
  double cache_directory_gib = 8;
  std::string api_key_file;
};

constexpr int kLastAnswersSeconds = 5;  // where the device is lost: for errors that are being written

void say(const std::string& line) {
  if (!line.empty()) std::fprintf(stderr, "%s\n", line.c_str());
}

// One key a line; empty lines and those that start with # do not count.
void read_keys(const std::string& path, std::vector<std::string>& keys) {
  std::istringstream lines(read_file(path, 1 << 20));
  for (std::string line; std::getline(lines, line);) {
    if (line.ends_with('\r')) line.pop_back();
    if (!line.empty() && !line.starts_with('#')) keys.push_back(line);
  }
  if (keys.empty()) throw_error(ErrorKind::kInvalidInput, "{}: holds no key", path);
}

// What a client names the model: the argument where it is a name, else the file's stem.
std::string served_name(const std::string& argument) {
  if (argument.empty()) return kDefaultModel;
  const bool is_path = argument.find('/') != std::string::npos || argument.ends_with(".gguf");
  return is_path && !argument.starts_with("hf:") && !argument.starts_with("ms:") ? "" : argument;
}

// As an address bar wants it.
std::string shown_host(const ServeFlags& flags) {
  const std::string& host = flags.server.http.host;
  return host.find(':') == std::string::npos ? host : "[" + host + "]";
}

// A connection is a descriptor, and shells often allow 1024 where the system would allow more.
void raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

// What an engine says of its device; where it gives up, the server ends.
DeviceLostListener device_lost_listener(ServeSignals& signals) {
  return [&signals](const std::string& line, bool ended) {
    say(line);
    if (ended) signals.push(ServeSignals::kDeviceLost);
  };
}

// Serves until a signal asks for the end, or SIGUSR2 for a successor that then serves; lets what runs finish.
// `save` keeps the cache and says so in a line, or in none: on SIGUSR1, before a successor reads what is
// kept, and at the end where there is no successor, whose the files then are.
void run_server(const ServeFlags& flags, const Restart& restart, ServeSignals& signals, serve::Server& server,
                const std::function<std::string()>& save) {
  const bool inherited = flags.server.http.listening_fd >= 0;
  if (!inherited && flags.server.http.host != "127.0.0.1" && flags.server.http.host != "localhost" &&
      flags.server.http.host != "::1" && flags.server.api_keys.empty()) {
    std::fprintf(stderr, "Anybody who reaches this address can use it: set --api-key to ask for one.\n");
  }
  announce_ready();
  bool restarting = false;
  int signal = signals.wait();
  for (; signal == SIGUSR1 || signal == SIGUSR2 || signal == ServeSignals::kNoSuccessor;
       signal = signals.wait()) {
    if (signal == SIGUSR1) {
      say(save());
      continue;
    }
    if (signal == ServeSignals::kNoSuccessor) {
      std::fprintf(stderr, "The new server did not start; this one goes on.\n");
      restarting = false;
      continue;
    }
    if (restarting) continue;
    say(save());
    try {
      if (in_several_processes())
        throw_error(ErrorKind::kUnsupported, "A server that mpirun started has no successor: start it again");
      const int process = start_successor(restart, server.listening_fd(), [&signals](bool serves) {
        signals.push(serves ? ServeSignals::kHandedOver : ServeSignals::kNoSuccessor);
      });
      restarting = true;
      std::fprintf(stderr, "Starting a new server (process %d) on the same socket\n", process);
    } catch (const Error& e) {
      std::fprintf(stderr, "%s; this server goes on.\n", e.what());
    }
  }
  if (signal == ServeSignals::kDeviceLost) {
    server.drain(kLastAnswersSeconds);
    throw_error(ErrorKind::kDeviceLost, "the device is lost: this server ends, to be started anew");
  }
  std::fprintf(stderr, "%sFinishing what runs (at most %d s; once more stops at once)\n",
               signal == ServeSignals::kHandedOver ? "The new server serves. " : "\n", flags.drain_seconds);
  std::thread([&signals] {
    int again = 0;
    do {
      again = signals.wait();
    } while (again != SIGINT && again != SIGTERM);
    std::_Exit(128 + again);
  }).detach();
  // Where another process goes on with the socket, clients know of no restart: their kept connections serve
  // one more request each rather than be closed under it.
  const bool rolling = signal == ServeSignals::kHandedOver || (inherited && signal == SIGTERM);
  server.drain(flags.drain_seconds,
               rolling ? serve::HttpServer::Idle::kAnswer : serve::HttpServer::Idle::kLeave);
  if (signal != ServeSignals::kHandedOver) say(save());
}

void serve_encoder(const ServeFlags& flags, const std::filesystem::path& path, const Restart& restart,
                   ServeSignals* signals) {
  if (!flags.model.adapters.empty())
    throw_error(ErrorKind::kUnsupported, "--lora: {} is an embedding model, which takes no adapters",
                path.string());
  const std::shared_ptr<EmbeddingModel> model = load_embedding_model(flags.model, path);
  EncoderEngine engine(model, {.on_device_lost = device_lost_listener(*signals)});
  signals->begin();  // before anybody can see it serve, and then end it
  serve::Server server(engine, flags.server);
  std::fprintf(stderr, "Serving %s at http://%s:%d (%s, texts of %lld tokens; Ctrl-C stops)\n",
               (flags.server.model_name.empty() ? model->name() : flags.server.model_name).c_str(),
               shown_host(flags).c_str(), server.port(),
               model->is_cross_encoder() ? "reranking" : "embeddings",
               static_cast<long long>(model->max_tokens()));
  run_server(flags, restart, *signals, server, [] { return std::string(); });
}

void serve_model(ServeFlags flags) {
  if (!flags.api_key_file.empty()) read_keys(flags.api_key_file, flags.server.api_keys);
  if (const char* key = std::getenv("QIAO_API_KEY"); key != nullptr && *key != '\0')
    flags.server.api_keys.emplace_back(key);
  for (const std::string& key : flags.server.api_keys) {
    if (key.empty())  // an unset variable, most likely: it would let everybody in
      throw_error(ErrorKind::kInvalidInput, "--api-key: is empty; leave it out to ask for none");
  }
  if (flags.server.model_name.empty()) flags.server.model_name = served_name(flags.model.model);
  flags.server.http.max_body_bytes = static_cast<size_t>(flags.max_body_mib) << 20;
  flags.server.response_store_bytes = static_cast<size_t>(flags.keep_responses_mib) << 20;

  // Before any thread, and never destroyed: its own waits until the process ends.
  ServeSignals* const own_signals = serves_behind_another() ? nullptr : new ServeSignals;
  join_ranks(flags.model.rank_timeout);
  const std::filesystem::path path = resolve_on_ranks(flags.model.model, !flags.model.no_pull);
  flags.model.model = path.string();
  flags.server.http.listening_fd = inherited_socket();
  const Restart restart;
  raise_descriptor_limit();

  if (EmbeddingModel::is_at(path)) return serve_encoder(flags, path, restart, own_signals);
  const std::shared_ptr<LanguageModel> model = load_model(flags.model);
  ServeSignals& signals = *own_signals;  // here is rank 0
  EngineOptions wished = engine_options(flags.model, flags.slots);
  wished.pages = flags.kv_pages;
  wished.memory_share = flags.memory_share;
  wished.fill_memory = true;
  wished.run_ahead = flags.run_ahead;
  wished.page_tokens = flags.page_tokens;
  wished.max_queued = flags.max_queued;
  wished.prefix_cache = !flags.no_prefix_cache;
  wished.share_across_tenants = flags.share_prefixes;
  wished.cache_directory = flags.cache_directory;
  wished.cache_directory_bytes = static_cast<uint64_t>(flags.cache_directory_gib * 0x1p30);
  wished.on_device_lost = device_lost_listener(signals);
  const std::string chip = model->backend().describe().name;
  Engine engine(model, wished);
  signals.begin();  // before anybody can see it serve, and then end it
  serve::Server server(model, engine, flags.server);
  const EngineOptions& options = engine.options();
  std::fprintf(stderr,
               "Serving %s at http://%s:%d (contexts of %lld tokens, %lld requests at once; Ctrl-C stops)\n",
               (flags.server.model_name.empty() ? model->name() : flags.server.model_name).c_str(),
               shown_host(flags).c_str(), server.port(), static_cast<long long>(options.context),
               static_cast<long long>(options.slots));
  if (const int ranks = model->decoder().ranks(); ranks > 1)
    say(fmt::format("Spread over {} processes, of which this is the first (PID {})", ranks, ::getpid()));
  for (const AdapterSource& adapter : model->adapters())
    std::fprintf(stderr, "LoRA adapter %s: %s\n", adapter.name.c_str(), adapter.path.c_str());
  const std::string sliding = options.sliding_pages == 0
                                  ? ""
                                  : fmt::format(", {} more for layers with a window of {}",
                                                options.sliding_pages, model->config().sliding_window);
  const EngineMemory memory = engine.memory();
  say(fmt::format(
      "Runs on {}: weights {}, key/value cache {} ({} pages of {} tokens{}, {}), workspace {}, free {} of {}",
      chip, format_bytes(memory.weights), format_bytes(memory.cache), options.pages, options.page_tokens,
      sliding, traits(options.kv_dtype).name, format_bytes(memory.workspace), format_bytes(memory.free),
      format_bytes(memory.total)));
  say(engine.restored());
  run_server(flags, restart, signals, server, [&] { return engine.save_cache(); });
}

}  // namespace

void add_serve_command(CLI::App& app) {
  const auto flags = std::make_shared<ServeFlags>();
  CLI::App* command = app.add_subcommand("serve", "Serve a model over HTTP: OpenAI's API and a chat page");
  add_model_flags(*command, flags->model);
  add_named_adapters_flag(*command, flags->model);
  command
      ->add_option("--host", flags->server.http.host, "Address to listen on; 0.0.0.0: all of this machine's")
      ->capture_default_str()
      ->type_name("ADDRESS");
  command
      ->add_option("--port", flags->server.http.port,
                   "Port to listen on; 0: any free one, printed at the start")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str()
      ->type_name("PORT");
  command->add_option("--parallel", flags->slots, "Most requests that run at once (-np too); others wait")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--max-queued", flags->max_queued, "Most requests that wait; more are refused with 429")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str()
      ->type_name("N");
  command
      ->add_option(
          "--kv-pages", flags->kv_pages,
          "Pages of the key/value cache; 0: what --memory-utilization gives, without a GPU at most what "
          "-np contexts need (sliding-window layers have their own, as many as -np windows need)")
      ->check(CLI::Range(int64_t{0}, int64_t{INT32_MAX}))
      ->capture_default_str()
      ->type_name("N");
  command
      ->add_option(
          "--memory-utilization,--gpu-memory-utilization", flags->memory_share,
          "Share of the memory that is free beside the weights for cache and workspace (0.5; of a GPU "
          "0.9, of which the cache takes all)")
      ->check(real_range(0.01, 1.0))
      ->type_name("X");
  command->add_flag("--run-ahead,!--no-run-ahead", flags->run_ahead,
                    "Give the chip a step before the tokens of the last one have come back (default: a GPU)");
  command
      ->add_option("--page-tokens", flags->page_tokens, "Tokens of a page: prompts are shared by whole pages")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 16))
      ->capture_default_str()
      ->type_name("N");
  CLI::Option* const no_prefix_cache = command->add_flag("--no-prefix-cache", flags->no_prefix_cache,
                                                         "Compute every prompt from its first token");
  command->add_flag("--share-prefix-cache", flags->share_prefixes,
                    "Share cached prompts between API keys (timing then tells what others asked)");
  command
      ->add_option(
          "--kv-cache-dir", flags->cache_directory,
          "Keep cached prompts in files of this folder: written at the end and on SIGUSR1, read at the start")
      ->excludes(no_prefix_cache)
      ->type_name("DIR");
  command
      ->add_option("--kv-cache-dir-size", flags->cache_directory_gib,
                   "Most GiB that those files take together")
      ->check(real_range(0.001, 1048576.0))
      ->capture_default_str()
      ->type_name("GIB");
  command->add_option("-a,--alias", flags->server.model_name, "Name of the model in the API")
      ->type_name("NAME");
  command
      ->add_option("--api-key", flags->server.api_keys,
                   "Key that clients must send; may be repeated (QIAO_API_KEY too)")
      ->type_name("KEY");
  command->add_option("--api-key-file", flags->api_key_file, "File with one key a line")->type_name("FILE");
  command
      ->add_option("--cors-origin", flags->server.cors_origins,
                   "Origin whose pages may call this server, or '*'; may be repeated")
      ->type_name("ORIGIN");
  command->add_option("--max-body", flags->max_body_mib, "Largest request body in MiB")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str()
      ->type_name("MIB");
  command
      ->add_option("--keep-responses", flags->keep_responses_mib,
                   "Memory in MiB for answers of /v1/responses that later requests may refer to; 0: none")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str()
      ->type_name("MIB");
  command
      ->add_option("--drain-seconds", flags->drain_seconds, "How long SIGTERM lets running requests finish")
      ->check(CLI::Range(0, 86400))
      ->capture_default_str()
      ->type_name("S");
  command->footer(
      "Paths: /v1/chat/completions /v1/responses /v1/messages /v1/completions /v1/embeddings /v1/rerank\n"
      "/v1/models /tokenize /detokenize /health /metrics /openapi.json, and / for a chat page.\n"
      "SIGTERM (Ctrl-C) lets running requests finish. SIGUSR1 saves cached prompts to --kv-cache-dir. "
      "SIGUSR2\n"
      "starts this program again on the same socket and then finishes: a restart without a lost request. A\n"
      "socket of systemd (LISTEN_FDS) is taken over.\n"
      "\n"
      "Examples:\n"
      "  qiao serve -m smollm2 --port 8080\n"
      "  qiao serve -m minilm                      # /v1/embeddings\n"
      "  qiao serve -m base.gguf --lora sql=sql-adapter/ --lora law=law.gguf\n"
      "  qiao serve -m qwen2.5-coder-1.5b -np 8 -c 4096 --host 0.0.0.0 --api-key secret\n"
      "  mpirun -np 2 qiao serve -m MODEL          # one model over two processes, or two GPUs");
  command->callback([flags] { serve_model(*flags); });
}

}  // namespace qiao::cli
