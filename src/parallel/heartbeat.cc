#include "parallel/heartbeat.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <thread>

#include "base/error.h"
#include "parallel/socket.h"

namespace qiao {
namespace {

using Clock = std::chrono::steady_clock;

// One byte each. After kEnd come the rank and how it ended.
constexpr char kBeat = 'b', kPeace = 'p', kFailed = 'f', kTerminated = 't', kEnd = 'x';
constexpr char kLost = 'l', kHangs = 'h';
constexpr size_t kMostAddresses = 32;

// What rank 0 tells the others by the communicator.
struct Meeting {
  uint16_t port = 0;
  uint32_t addresses = 0;
  std::array<in_addr, kMostAddresses> address{};
  std::array<unsigned char, 16> secret{};  // so that a stranger is no rank
};
struct Hello {
  std::array<unsigned char, 16> secret{};
  int32_t rank = 0;
};

[[noreturn]] void fail(const std::string& what) {
  throw_error(ErrorKind::kUnavailable, "ranks: {}: {}", what, std::strerror(errno));
}

// Addresses of this machine by which others may reach it, its own loopback last.
void find_addresses(Meeting& meeting) {
  ifaddrs* all = nullptr;
  if (::getifaddrs(&all) != 0) fail("no network interface");
  for (const bool loopback : {false, true}) {
    for (const ifaddrs* at = all; at != nullptr; at = at->ifa_next) {
      if (at->ifa_addr == nullptr || at->ifa_addr->sa_family != AF_INET || (at->ifa_flags & IFF_UP) == 0)
        continue;
      if (((at->ifa_flags & IFF_LOOPBACK) != 0) != loopback || meeting.addresses == kMostAddresses) continue;
      sockaddr_in address;
      std::memcpy(&address, at->ifa_addr, sizeof(address));
      meeting.address[meeting.addresses++] = address.sin_addr;
    }
  }
  ::freeifaddrs(all);
}

bool wait_for(int descriptor, short events, Clock::time_point until) {
  for (;;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - Clock::now()).count();
    if (left <= 0) return false;
    pollfd entry{descriptor, events, 0};
    const int ready = ::poll(&entry, 1, static_cast<int>(left));
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR) return false;
  }
}

// All of `bytes` before `until`; the socket does not block.
bool transfer(int descriptor, std::span<std::byte> bytes, bool writes, Clock::time_point until) {
  while (!bytes.empty()) {
    if (!wait_for(descriptor, writes ? POLLOUT : POLLIN, until)) return false;
    const ssize_t count = writes ? ::send(descriptor, bytes.data(), bytes.size(), MSG_NOSIGNAL)
                                 : ::recv(descriptor, bytes.data(), bytes.size(), 0);
    if (count > 0) {
      bytes = bytes.subspan(static_cast<size_t>(count));
    } else if (count == 0 || (errno != EAGAIN && errno != EINTR)) {
      return false;
    }
  }
  return true;
}

Socket connect_to(const Meeting& meeting, int rank, Clock::time_point until) {
  Hello hello{meeting.secret, rank};
  for (uint32_t i = 0; i < meeting.addresses; ++i) {
    Socket made(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (made.get() < 0) fail("no socket");
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(meeting.port);
    address.sin_addr = meeting.address[i];
    const auto soon = std::min(until, Clock::now() + std::chrono::seconds(3));
    if (::connect(made.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 &&
        errno != EINPROGRESS)
      continue;
    int error = 0;
    socklen_t size = sizeof(error);
    if (!wait_for(made.get(), POLLOUT, soon) ||
        ::getsockopt(made.get(), SOL_SOCKET, SO_ERROR, &error, &size) != 0 || error != 0)
      continue;
    // Another machine may have this one's private address: rank 0 answers with the same bytes.
    Hello answer;
    if (!transfer(made.get(), std::as_writable_bytes(std::span(&hello, 1)), true, soon) ||
        !transfer(made.get(), std::as_writable_bytes(std::span(&answer, 1)), false, soon) ||
        std::memcmp(&answer, &hello, sizeof(hello)) != 0)
      continue;
    return made;
  }
  throw_error(ErrorKind::kUnavailable,
              "ranks: rank {} does not reach rank 0 on port {} of any of its {} addresses (a firewall?)",
              rank, meeting.port, meeting.addresses);
}

std::atomic<bool> was_terminated = false;  // by SIGTERM
std::atomic<int> wake_descriptor = -1;     // what the handler of it writes to

}  // namespace

struct Heartbeat::State {
  State(Communicator& communicator, const MpiOptions& options, std::function<void(const std::string&)> tell)
      : rank(communicator.rank()),
        patience(options.patience_seconds),
        consequence(options.consequence),
        takes_sigterm(options.takes_sigterm),
        tell(std::move(tell)),
        peers(1) {
    for (int other = 0; other < communicator.size(); ++other) names.push_back(communicator.name(other));
    peers.resize(rank == 0 ? names.size() : 1);
    if (::pipe2(wake, O_CLOEXEC | O_NONBLOCK) != 0) fail("no pipe");
  }
  ~State() {
    ::close(wake[0]);
    ::close(wake[1]);
  }

  // Of rank 0: by rank (its own is empty); of others: rank 0 alone.
  struct Peer {
    Socket socket;
    Clock::time_point heard;
    bool at_peace = false, failed = false, terminated = false;
  };

  void listen(Communicator& communicator, Clock::time_point until);
  void run();
  void hear(size_t index);
  void say(const Peer& peer, std::string_view bytes) const {
    if (peer.socket.get() >= 0) [[maybe_unused]]
      const ssize_t sent = ::send(peer.socket.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  }
  [[noreturn]] void end(size_t lost, char how);
  [[noreturn]] void end_terminated();

  int rank;
  double patience;
  std::string consequence;
  bool takes_sigterm;
  std::function<void(const std::string&)> tell;
  std::vector<std::string> names;
  std::vector<Peer> peers;
  int wake[2];
  std::atomic<bool> stops = false;
  Clock::time_point ends_at = Clock::time_point::max();  // where the launcher has not ended it before
  std::thread thread;
  struct sigaction before {};
};

void Heartbeat::State::listen(Communicator& communicator, Clock::time_point until) {
  Socket door(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_in any{};
  any.sin_family = AF_INET;
  socklen_t size = sizeof(any);
  if (door.get() < 0 || ::bind(door.get(), reinterpret_cast<sockaddr*>(&any), size) != 0 ||
      ::listen(door.get(), 128) != 0 ||
      ::getsockname(door.get(), reinterpret_cast<sockaddr*>(&any), &size) != 0)
    fail("no port to listen on");
  Meeting meeting;
  meeting.port = ntohs(any.sin_port);
  find_addresses(meeting);
  if (::getrandom(meeting.secret.data(), meeting.secret.size(), 0) != std::ssize(meeting.secret))
    fail("no random numbers");
  for (int other = 1; other < communicator.size(); ++other)
    communicator.send(other, std::as_bytes(std::span(&meeting, 1)));
  for (size_t missing = peers.size() - 1; missing > 0;) {
    if (!wait_for(door.get(), POLLIN, until))
      throw_error(ErrorKind::kUnavailable, "ranks: {} of {} did not connect to rank 0", missing,
                  peers.size());
    Socket made(::accept4(door.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    Hello hello;
    const auto soon = std::min(until, Clock::now() + std::chrono::seconds(1));
    if (made.get() < 0 || !transfer(made.get(), std::as_writable_bytes(std::span(&hello, 1)), false, soon))
      continue;
    if (hello.secret != meeting.secret || hello.rank < 1 || hello.rank >= std::ssize(peers)) continue;
    Peer& peer = peers[static_cast<size_t>(hello.rank)];
    if (peer.socket.get() >= 0 ||
        !transfer(made.get(), std::as_writable_bytes(std::span(&hello, 1)), true, soon))
      continue;
    peer.socket = std::move(made);
    --missing;
  }
}

void Heartbeat::State::hear(size_t index) {
  Peer& peer = peers[index];
  char bytes[256];
  const ssize_t count = ::recv(peer.socket.get(), bytes, sizeof(bytes), MSG_DONTWAIT);
  if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (count <= 0) {
    if (!peer.at_peace && !peer.failed && !peer.terminated) end(index, kLost);
    if (!peer.at_peace) ends_at = std::min(ends_at, Clock::now() + std::chrono::seconds(2));
    peer.socket = Socket();
    return;
  }
  peer.heard = Clock::now();
  for (ssize_t i = 0; i < count; ++i) {
    peer.at_peace = peer.at_peace || bytes[i] == kPeace;
    peer.failed = peer.failed || bytes[i] == kFailed;
    peer.terminated = peer.terminated || bytes[i] == kTerminated;
    if (bytes[i] == kEnd) ::_exit(1);  // rank 0 has told
  }
}

void Heartbeat::State::end(size_t lost, char how) {
  // Where rank 0 is what is lost, all the others notice: the first tells, and its end has the launcher end
  // the rest; without a launcher that does, the next one tells, too.
  const auto turn = Clock::now() + std::chrono::milliseconds(300 * (rank > 1 ? rank - 1 : 0));
  while (Clock::now() < turn) {
    if (was_terminated) ::_exit(1);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  tell(fmt::format("{} {}: {}", names[lost],
                   how == kLost ? "is lost, its process has ended"
                                : fmt::format("hangs, it gave no sign of life for {} s", patience),
                   consequence));
  for (const Peer& peer : peers) say(peer, std::string{kEnd, static_cast<char>(lost), how});
  ::_exit(1);
}

// The launcher ends all where one has ended: that one's connection is closed, or closes now.
void Heartbeat::State::end_terminated() {
  for (const Peer& peer : peers) say(peer, std::string{kTerminated});
  const auto until = Clock::now() + std::chrono::milliseconds(500);
  while (Clock::now() < until) {
    for (size_t i = 0; i < peers.size(); ++i)
      if (peers[i].socket.get() >= 0) hear(i);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  const bool told = std::ranges::any_of(peers, [](const Peer& peer) { return peer.failed; });
  if (rank == 0 && !told) tell(fmt::format("ended by SIGTERM: {}", consequence));
  ::_exit(1);
}

void Heartbeat::State::run() {
  const auto silence = std::chrono::duration<double>(patience);
  const auto interval =
      std::chrono::duration_cast<std::chrono::milliseconds>(std::clamp<std::chrono::duration<double>>(
          silence / 8, std::chrono::milliseconds(20), std::chrono::seconds(1)));
  Clock::time_point woke = Clock::now();
  for (Peer& peer : peers) peer.heard = woke;
  std::vector<pollfd> entries;
  std::vector<size_t> who;
  while (!stops) {
    if (was_terminated) end_terminated();
    entries.assign(1, {wake[0], POLLIN, 0});
    who.assign(1, 0);
    for (size_t i = 0; i < peers.size(); ++i) {
      if (peers[i].socket.get() < 0) continue;
      say(peers[i], std::string{kBeat});
      entries.push_back({peers[i].socket.get(), POLLIN, 0});
      who.push_back(i);
    }
    const auto next = Clock::now() + interval;
    for (bool changed = false; !stops && !was_terminated && !changed && Clock::now() < next;) {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(next - Clock::now()).count();
      ::poll(entries.data(), entries.size(), static_cast<int>(std::max<int64_t>(left, 1)));
      for (size_t i = 1; i < entries.size(); ++i) {
        hear(who[i]);
        changed = changed || peers[who[i]].socket.get() < 0;
      }
    }
    if (Clock::now() >= ends_at) ::_exit(1);
    // Who was stopped itself has heard nobody.
    const Clock::time_point now = Clock::now();
    if (now - woke > silence / 2) {
      for (Peer& peer : peers) peer.heard = now;
    }
    woke = now;
    for (size_t i = 0; i < peers.size(); ++i) {
      const Peer& peer = peers[i];
      if (peer.socket.get() >= 0 && !peer.at_peace && !peer.failed && now - peer.heard > silence)
        end(i, kHangs);
    }
  }
}

Heartbeat::Heartbeat(Communicator& communicator, const MpiOptions& options,
                     std::function<void(const std::string&)> tell)
    : state_(std::make_unique<State>(communicator, options, std::move(tell))) {
  const auto until = Clock::now() + std::chrono::seconds(25);
  if (communicator.rank() == 0) {
    state_->listen(communicator, until);
  } else {
    Meeting meeting;
    communicator.receive(0, std::as_writable_bytes(std::span(&meeting, 1)));
    state_->peers[0].socket = connect_to(meeting, communicator.rank(), until);
  }
  wake_descriptor = state_->wake[1];
  if (state_->takes_sigterm) {
    struct sigaction action {};
    action.sa_handler = [](int) {
      was_terminated = true;
      [[maybe_unused]] const ssize_t written = ::write(wake_descriptor, "", 1);
    };
    ::sigaction(SIGTERM, &action, &state_->before);
  }
  state_->thread = std::thread([this] { state_->run(); });
}

void Heartbeat::give_up() {
  for (const State::Peer& peer : state_->peers) state_->say(peer, std::string{kFailed});
}

Heartbeat::~Heartbeat() {
  for (const State::Peer& peer : state_->peers) state_->say(peer, std::string{kPeace});
  state_->stops = true;
  [[maybe_unused]] const ssize_t written = ::write(state_->wake[1], "", 1);
  state_->thread.join();
  if (state_->takes_sigterm) ::sigaction(SIGTERM, &state_->before, nullptr);
}

}  // namespace qiao
