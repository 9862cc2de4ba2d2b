#include "base/subprocess.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>

#include "base/error.h"

namespace qiao {
namespace {

constexpr size_t kOutputKept = size_t{64} << 10;
constexpr int kTickMilliseconds = 100;

// The child, reaped on every way out.
class Child {
 public:
  explicit Child(pid_t pid) : pid_(pid) {}
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGTERM);
    wait();
  }
  int wait() {
    int status = 0;
    while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

 private:
  pid_t pid_;
};

class Pipe {
 public:
  Pipe() {
    if (::pipe2(ends_, O_CLOEXEC) != 0)
      throw_error(ErrorKind::kIo, "cannot make a pipe: {}", std::strerror(errno));
  }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;
  ~Pipe() {
    ::close(ends_[0]);
    close_writing();
  }
  int reading() const { return ends_[0]; }
  int writing() const { return ends_[1]; }
  void close_writing() {
    if (ends_[1] >= 0) ::close(ends_[1]);
    ends_[1] = -1;
  }

 private:
  int ends_[2] = {-1, -1};
};

std::vector<std::string> environment_with(const std::vector<std::pair<std::string, std::string>>& added) {
  std::vector<std::string> result;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    bool replaced = false;
    for (const auto& [name, value] : added) replaced = replaced || text.starts_with(name + "=");
    if (!replaced) result.emplace_back(text);
  }
  for (const auto& [name, value] : added) result.push_back(name + "=" + value);
  return result;
}

std::vector<char*> pointers_to(std::vector<std::string>& strings) {
  std::vector<char*> result;
  result.reserve(strings.size() + 1);
  for (std::string& string : strings) result.push_back(string.data());
  result.push_back(nullptr);
  return result;
}

}  // namespace

SubprocessResult run_subprocess(const std::vector<std::string>& argv, const SubprocessOptions& options) {
  QIAO_ASSERT(!argv.empty());
  // All memory is made before the fork: the child of a threaded process may not allocate.
  std::vector<std::string> arguments = argv;
  std::vector<std::string> environment = environment_with(options.environment);
  const std::vector<char*> arguments_c = pointers_to(arguments);
  const std::vector<char*> environment_c = pointers_to(environment);
  Pipe output;
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) throw_error(ErrorKind::kIo, "{}: cannot start: {}", argv[0], std::strerror(errno));
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (::getppid() != parent) ::_exit(127);  // the parent ended before the line above
    const int empty = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
    ::dup2(empty, STDIN_FILENO);
    ::dup2(output.writing(), STDOUT_FILENO);
    ::dup2(output.writing(), STDERR_FILENO);
    ::execvpe(arguments_c[0], arguments_c.data(), environment_c.data());
    ::_exit(errno == ENOENT ? 127 : 126);
  }
  Child child(pid);
  output.close_writing();
  SubprocessResult result;
  auto last_tick = std::chrono::steady_clock::now();
  while (true) {
    pollfd waiting{.fd = output.reading(), .events = POLLIN, .revents = 0};
    const int ready = ::poll(&waiting, 1, kTickMilliseconds);
    const auto now = std::chrono::steady_clock::now();
    if (options.tick && now - last_tick >= std::chrono::milliseconds(kTickMilliseconds)) {
      last_tick = now;
      options.tick();
    }
    if (ready <= 0) continue;
    char bytes[4096];
    const ssize_t n = ::read(output.reading(), bytes, sizeof bytes);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    result.output.append(bytes, static_cast<size_t>(n));
    if (result.output.size() > 2 * kOutputKept) result.output.erase(0, result.output.size() - kOutputKept);
  }
  result.exit_code = child.wait();
  result.not_found = result.exit_code == 127 && result.output.empty();
  return result;
}

}  // namespace qiao
