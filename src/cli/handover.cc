#include "cli/handover.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string_view>
#include <thread>

#include "base/error.h"
#include "base/file.h"

namespace qiao::cli {
namespace {

constexpr int kFirstPassedFd = 3;  // systemd's SD_LISTEN_FDS_START
constexpr const char* kReadyVariable = "QIAO_READY_FD";

int number_in(const char* name) {
  const char* text = std::getenv(name);
  if (text == nullptr) return -1;
  int number = -1;
  const std::string_view view(text);
  const auto [end, problem] = std::from_chars(view.data(), view.data() + view.size(), number);
  return problem == std::errc() && end == view.data() + view.size() ? number : -1;
}

void notify_systemd() {
  const char* path = std::getenv("NOTIFY_SOCKET");
  if (path == nullptr) return;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const size_t length = std::strlen(path);
  if (length == 0 || length >= sizeof address.sun_path) return;
  std::memcpy(address.sun_path, path, length);
  if (address.sun_path[0] == '@') address.sun_path[0] = '\0';  // an abstract name
  const int fd = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return;
  const std::string message = fmt::format("READY=1\nMAINPID={}", ::getpid());
  ::sendto(fd, message.data(), message.size(), MSG_NOSIGNAL, reinterpret_cast<const sockaddr*>(&address),
           static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + length));
  ::close(fd);
}

// Between fork and exec only what is safe in a signal handler: `pid_digits` (room for 20) is filled by hand.
[[noreturn]] void become(const char* program, char* const* arguments, char* const* environment,
                         char* pid_digits, int listening_fd, int ready_fd) {
  char digits[20];
  int count = 0;
  for (pid_t pid = ::getpid(); pid > 0; pid /= 10) digits[count++] = static_cast<char>('0' + pid % 10);
  for (int i = 0; i < count; ++i) pid_digits[i] = digits[count - 1 - i];
  pid_digits[count] = '\0';
  std::signal(SIGPIPE, SIG_DFL);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  // Out of the way first: either may have the other's number.
  const int listening = ::fcntl(listening_fd, F_DUPFD, 16);
  const int ready = ::fcntl(ready_fd, F_DUPFD, 16);
  if (listening < 0 || ready < 0 || ::dup2(listening, kFirstPassedFd) < 0 ||
      ::dup2(ready, kFirstPassedFd + 1) < 0) {
    ::_exit(127);
  }
  // The peers' connections above all: they would stay open when this process has closed them.
  ::close_range(kFirstPassedFd + 2, ~0U, 0);
  ::execve(program, arguments, environment);
  ::_exit(127);
}

std::vector<char*> pointers_to(std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (std::string& text : texts) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

}  // namespace

ServeSignals::ServeSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1, SIGUSR2}) sigaddset(&signals, signal);
  if (pthread_sigmask(SIG_BLOCK, &signals, nullptr) != 0) throw_error(ErrorKind::kIo, "cannot block signals");
  std::signal(SIGPIPE, SIG_IGN);
  std::thread([this, signals] {
    while (true) {
      int signal = 0;
      if (sigwait(&signals, &signal) != 0) continue;
      {
        const std::lock_guard lock(mutex_);
        if (!begun_ && signal != SIGUSR1 && signal != SIGUSR2) std::_Exit(128 + signal);
      }
      push(signal);
    }
  }).detach();
}

void ServeSignals::begin() {
  const std::lock_guard lock(mutex_);
  begun_ = true;
}

void ServeSignals::push(int signal) {
  const std::lock_guard lock(mutex_);
  queue_.push_back(signal);
  arrived_.notify_all();
}

int ServeSignals::wait() {
  std::unique_lock lock(mutex_);
  arrived_.wait(lock, [&] { return !queue_.empty(); });
  const int signal = queue_.front();
  queue_.pop_front();
  return signal;
}

int inherited_socket() {
  const bool mine = number_in("LISTEN_PID") == ::getpid();
  const char* said = std::getenv("LISTEN_FDS");
  const std::string count = said == nullptr ? "" : said;
  for (const char* name : {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}) ::unsetenv(name);
  if (!mine || count == "0") return -1;
  if (count != "1")
    throw_error(ErrorKind::kInvalidInput, "LISTEN_FDS is '{}', expected one socket", count.substr(0, 20));
  return kFirstPassedFd;
}

void announce_ready() {
  const int fd = number_in(kReadyVariable);
  ::unsetenv(kReadyVariable);
  if (fd >= 0) {
    const char ready = '1';
    while (::write(fd, &ready, 1) < 0 && errno == EINTR) {
    }
    ::close(fd);
  }
  notify_systemd();
}

Restart::Restart() {
  std::error_code problem;
  program = std::filesystem::read_symlink("/proc/self/exe", problem);
  std::istringstream lines(read_file("/proc/self/cmdline", 1 << 20));
  for (std::string argument; std::getline(lines, argument, '\0');) arguments.push_back(argument);
}

int start_successor(const Restart& restart, int listening_fd, std::function<void(bool serves)> on_outcome) {
  int pipe[2];
  if (listening_fd < 0 || ::pipe2(pipe, O_CLOEXEC) != 0)
    throw_error(ErrorKind::kIo, "no successor can be started: {}", std::strerror(errno));
  std::vector<std::string> arguments = restart.arguments, environment;
  for (char** entry = environ; *entry != nullptr; ++entry) environment.emplace_back(*entry);
  environment.emplace_back("LISTEN_FDS=1");
  environment.push_back(fmt::format("{}={}", kReadyVariable, kFirstPassedFd + 1));
  constexpr std::string_view kPid = "LISTEN_PID=";
  environment.push_back(std::string(kPid) + std::string(20, '\0'));
  const std::vector<char*> argv = pointers_to(arguments), envp = pointers_to(environment);
  char* const digits = environment.back().data() + kPid.size();
  const pid_t pid = ::fork();
  if (pid == 0) become(restart.program.c_str(), argv.data(), envp.data(), digits, listening_fd, pipe[1]);
  const int failure = errno;
  ::close(pipe[1]);
  if (pid < 0) {
    ::close(pipe[0]);
    throw_error(ErrorKind::kIo, "no successor can be started: {}", std::strerror(failure));
  }
  std::thread([pid, fd = pipe[0], on_outcome = std::move(on_outcome)] {
    char byte = 0;
    ssize_t n = 0;
    while ((n = ::read(fd, &byte, 1)) < 0 && errno == EINTR) {
    }
    ::close(fd);
    if (n != 1) ::waitpid(pid, nullptr, 0);
    on_outcome(n == 1);
  }).detach();
  return pid;
}

}  // namespace qiao::cli
