#include "base/subprocess.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>

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
    if (ends_[0] >= 0) ::close(ends_[0]);
    close_writing();
  }
  int reading() const { return ends_[0]; }
  int writing() const { return ends_[1]; }
  int take_reading() { return std::exchange(ends_[0], -1); }
  int take_writing() { return std::exchange(ends_[1], -1); }
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

namespace {

constexpr size_t kLastWordsKept = 2000;
using Clock = std::chrono::steady_clock;

// Writing to a program that has gone raises SIGPIPE, which is taken back.
ssize_t write_quietly(int to, std::string_view bytes) {
  sigset_t broken, before, pending;
  sigemptyset(&broken);
  sigaddset(&broken, SIGPIPE);
  sigpending(&pending);
  pthread_sigmask(SIG_BLOCK, &broken, &before);
  const ssize_t n = ::write(to, bytes.data(), bytes.size());
  const int error = errno;
  if (n < 0 && error == EPIPE && sigismember(&pending, SIGPIPE) == 0) {
    const timespec none{};
    sigtimedwait(&broken, nullptr, &none);
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  errno = error;
  return n;
}

// Appends what can be read now; false at the end.
bool read_more(int from, std::string& to, size_t most) {
  char bytes[65536];
  while (to.size() < most) {
    const ssize_t n = ::read(from, bytes, sizeof bytes);
    if (n == 0) return false;
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno == EAGAIN || errno == EWOULDBLOCK;
    to.append(bytes, static_cast<size_t>(n));
  }
  return true;
}

void close_and_forget(int& descriptor) {
  if (descriptor >= 0) ::close(descriptor);
  descriptor = -1;
}

bool has_ended(pid_t pid, int& status, std::chrono::milliseconds patience) {
  const auto until = Clock::now() + patience;
  while (true) {
    const pid_t found = ::waitpid(pid, &status, WNOHANG);
    if (found == pid || (found < 0 && errno != EINTR)) return true;
    if (Clock::now() >= until) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

}  // namespace

PipedProcess::PipedProcess(const std::vector<std::string>& argv) : name_(argv.at(0)) {
  std::vector<std::string> arguments = argv;  // all memory before the fork, as above
  const std::vector<char*> arguments_c = pointers_to(arguments);
  Pipe input, output, errors;
  const pid_t parent = ::getpid();
  pid_ = ::fork();
  if (pid_ < 0) throw_error(ErrorKind::kIo, "{}: cannot start: {}", name_, std::strerror(errno));
  if (pid_ == 0) {
    ::setpgid(0, 0);
    ::prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (::getppid() != parent) ::_exit(127);
    ::dup2(input.reading(), STDIN_FILENO);
    ::dup2(output.writing(), STDOUT_FILENO);
    ::dup2(errors.writing(), STDERR_FILENO);
    ::execvp(arguments_c[0], arguments_c.data());
    ::_exit(errno == ENOENT ? 127 : 126);
  }
  ::setpgid(pid_, pid_);  // whoever of the two comes first
  input_ = input.take_writing();
  output_ = output.take_reading();
  errors_ = errors.take_reading();
  for (const int end : {input_, output_, errors_}) ::fcntl(end, F_SETFL, O_NONBLOCK);
}

PipedProcess::~PipedProcess() {
  close_and_forget(input_);
  if (!ended_ && !has_ended(pid_, status_, std::chrono::seconds(1))) {
    ::kill(-pid_, SIGTERM);
    if (!has_ended(pid_, status_, std::chrono::seconds(1))) {
      ::kill(-pid_, SIGKILL);
      while (::waitpid(pid_, &status_, 0) < 0 && errno == EINTR) {
      }
    }
  }
  close_and_forget(output_);
  close_and_forget(errors_);
}

void PipedProcess::take_errors() {
  if (errors_ < 0) return;
  while (true) {
    const size_t before = last_words_.size();
    const bool open = read_more(errors_, last_words_, before + 65536);
    const bool more = last_words_.size() >= before + 65536;
    if (last_words_.size() > kLastWordsKept) last_words_.erase(0, last_words_.size() - kLastWordsKept);
    if (!open) close_and_forget(errors_);
    if (!open || !more) return;
  }
}

void PipedProcess::fail(const std::string& what) {
  close_and_forget(input_);
  take_errors();
  std::string words =
      last_words_.substr(std::min(last_words_.find_first_not_of(" \n\r\t"), last_words_.size()));
  while (!words.empty() && std::strchr(" \n\r\t", words.back()) != nullptr) words.pop_back();
  std::replace(words.begin(), words.end(), '\n', '|');
  throw_error(ErrorKind::kIo, "{}{}{}", what, words.empty() ? "" : "; the last words of its stderr: ", words);
}

void PipedProcess::fail_ended() {
  ended_ = ended_ || has_ended(pid_, status_, std::chrono::seconds(1));
  if (!ended_) fail("it has closed its stdin or stdout");
  if (WIFSIGNALED(status_)) fail(fmt::format("it was ended by signal {}", WTERMSIG(status_)));
  const int code = WEXITSTATUS(status_);
  fail(fmt::format("it has ended with exit code {}{}", code,
                   code == 127 ? fmt::format(" ({}: there is no such program)", name_) : ""));
}

// Whether a whole line is in read_.
bool PipedProcess::take_output(size_t most_bytes) {
  const bool open = read_more(output_, read_, most_bytes + 2);
  if (read_.find('\n') != std::string::npos) return true;
  if (!open) fail_ended();
  if (read_.size() > most_bytes) fail(fmt::format("it has written a line of more than {} bytes", most_bytes));
  return false;
}

std::string PipedProcess::exchange(std::string_view line, std::chrono::milliseconds limit,
                                   size_t most_bytes) {
  if (input_ < 0) fail_ended();
  read_more(output_, read_, most_bytes);
  if (!read_.empty()) {
    fail(
        fmt::format("it has written what nobody asked for ({}): one line for each that it reads was expected",
                    read_.substr(0, std::min<size_t>(read_.find('\n'), 100))));
  }
  std::string text(line);
  text += '\n';
  const auto until = Clock::now() + limit;
  for (size_t written = 0; true;) {
    while (written < text.size()) {
      const ssize_t n = write_quietly(input_, std::string_view(text).substr(written));
      if (n > 0) written += static_cast<size_t>(n);
      if (n < 0 && errno == EPIPE) fail_ended();
      if (n < 0 && errno != EINTR) break;
    }
    take_errors();
    if (take_output(most_bytes)) break;
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - Clock::now()).count();
    if (left <= 0) fail(fmt::format("it has not answered within {} ms", limit.count()));
    pollfd waiting[3] = {{.fd = output_, .events = POLLIN, .revents = 0},
                         {.fd = errors_, .events = POLLIN, .revents = 0},
                         {.fd = written < text.size() ? input_ : -1, .events = POLLOUT, .revents = 0}};
    ::poll(waiting, 3, static_cast<int>(std::min<int64_t>(left, kTickMilliseconds)));
  }
  const size_t end = read_.find('\n');
  if (end > most_bytes) fail(fmt::format("it has written a line of more than {} bytes", most_bytes));
  std::string answer = read_.substr(0, end);
  read_.erase(0, end + 1);
  if (!answer.empty() && answer.back() == '\r') answer.pop_back();
  return answer;
}

}  // namespace qiao
