#include "model.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <utility>
#include <cstring>

namespace soft {

namespace {

constexpr size_t kRegion = size_t(32) << 30;  // of addresses; pages come with their first use
using Lock = std::lock_guard<std::recursive_mutex>;

// The same bytes at two addresses.
void map_twice(const char* name, int visible, uintptr_t& begin, uintptr_t& shadow) {
  int file = memfd_create(name, MFD_CLOEXEC);
  if (file < 0 || ftruncate(file, kRegion)) abort();
  void* first = mmap(nullptr, kRegion, visible, MAP_SHARED | MAP_NORESERVE, file, 0);
  void* second = mmap(nullptr, kRegion, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
  if (first == MAP_FAILED || second == MAP_FAILED) abort();
  close(file);
  begin = reinterpret_cast<uintptr_t>(first);
  shadow = reinterpret_cast<uintptr_t>(second);
}

size_t round_up(size_t size, size_t to) { return std::max((size + to - 1) / to * to, to); }

bool covered(const Step& step, const Clock& known) {
  return size_t(step.actor) < known.size() && step.stamp <= known[step.actor];
}

struct sigaction others;

void on_fault(int signal, siginfo_t* info, void* context) {
  auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  Machine& machine = Machine::get();
  if (machine.is_pinned(address) && machine.host_fault(address)) return;
  if (machine.is_device(address)) {
    const char text[] = "soft: the CPU touched device memory\n";
    (void)!write(2, text, sizeof text - 1);
  }
  if (others.sa_flags & SA_SIGINFO) {
    others.sa_sigaction(signal, info, context);
  } else if (others.sa_handler != SIG_DFL && others.sa_handler != SIG_IGN) {
    others.sa_handler(signal);
  }
  sigaction(SIGSEGV, &others, nullptr);  // and fault again
}

}  // namespace

void join(Clock& into, const Clock& other) {
  if (into.size() < other.size()) into.resize(other.size());
  for (size_t i = 0; i < other.size(); ++i) into[i] = std::max(into[i], other[i]);
}

Machine& Machine::get() {
  static Machine* machine = new Machine();  // outlives all tensors
  return *machine;
}

Machine::Machine() {
  for (int device = 0; device < kDevices; ++device) {
    map_twice("soft-device", PROT_NONE, device_begin_[device], device_shadow_[device]);
    device_next_[device] = device_begin_[device] + kAlign;  // device pointers are never the region's first
    capacity_[device] = int64_t(8) << 30;
    new_stream(device);
  }
  map_twice("soft-pinned", PROT_READ | PROT_WRITE, pinned_begin_, pinned_shadow_);
  pinned_next_ = pinned_begin_;
  struct sigaction ours {};
  ours.sa_sigaction = on_fault;
  ours.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
  sigaction(SIGSEGV, &ours, &others);
}

// Actors and their clocks.

int Machine::new_actor(std::string name) {
  names_.push_back(std::move(name));
  return int(names_.size()) - 1;
}

int Machine::me() {
  thread_local int actor = -1;
  if (actor < 0) {
    actor = new_actor("host thread " + std::to_string(syscall(SYS_gettid)));
    hosts_[actor].resize(actor + 1);
    hosts_[actor][actor] = 1;
  }
  return actor;
}

Clock& Machine::mine() { return hosts_[me()]; }

void Machine::tick() { ++mine()[me()]; }

std::string Machine::name_of(int actor) const { return names_[actor]; }

int64_t Machine::publish() {
  Lock lock(mutex);
  published_[++tokens_] = mine();
  tick();
  return tokens_;
}

void Machine::take(int64_t token) {
  Lock lock(mutex);
  auto found = published_.find(token);
  if (found == published_.end()) return;
  join(mine(), found->second);
  open_what_is_over(mine());
}

std::vector<Report> Machine::take_reports() {
  Lock lock(mutex);
  return std::exchange(reports_, {});
}

// Memory.

bool Machine::is_device(uintptr_t address, int* device) const {
  for (int i = 0; i < kDevices; ++i) {
    if (address >= device_begin_[i] && address < device_begin_[i] + kRegion) {
      if (device) *device = i;
      return true;
    }
  }
  return false;
}

bool Machine::is_pinned(uintptr_t address) const {
  return address >= pinned_begin_ && address < pinned_begin_ + kRegion;
}

void* Machine::shadow(uintptr_t address) const {
  int device = 0;
  if (is_device(address, &device)) return reinterpret_cast<void*>(address - device_begin_[device] + device_shadow_[device]);
  if (is_pinned(address)) return reinterpret_cast<void*>(address - pinned_begin_ + pinned_shadow_);
  return reinterpret_cast<void*>(address);
}

Block* Machine::block_of(uintptr_t address) {
  auto after = blocks_.upper_bound(address);
  if (after == blocks_.begin()) return nullptr;
  Block& block = std::prev(after)->second;
  return address < block.begin + block.size ? &block : nullptr;
}

uintptr_t Machine::allocate(int device, int index, size_t requested, const Place& place) {
  Lock lock(mutex);
  size_t size = round_up(requested, kAlign);
  Stats& stats = stats_[device];
  if (stats.now + int64_t(size) > capacity_[device]) return 0;
  Stream& pool = stream(index);
  join(pool.clock, mine());
  check_freed(device, index);
  Block block;
  auto& ready = reusable_[{index, size}];
  if (!ready.empty()) {
    block = std::move(ready.back());
    ready.pop_back();
  } else {
    block.begin = device_next_[device];
    device_next_[device] += size;
    if (device_next_[device] > device_begin_[device] + kRegion) return 0;
  }
  block.size = size;
  block.requested = requested;
  block.device = device;
  block.stream = index;
  block.steps.clear();
  block.also_on.clear();
  uintptr_t begin = block.begin;
  blocks_[begin] = std::move(block);
  // Earlier work of the pool's stream may still use the memory, so the next owner's first step on another stream has to
  // wait for it: the allocation is a step of the pool's stream, which writes NaN.
  step(index, {{begin, begin + size, true}}, "allocation", place);
  void* bytes = shadow(begin);
  auto fill = [bytes, size] { std::memset(bytes, 0xff, size); };
  if (pool.queue.empty()) {
    fill();
  } else {
    push(index, fill);
  }
  stats.now += size;
  stats.allocated += size;
  stats.count += 1;
  stats.peak = std::max(stats.peak, stats.now);
  return begin;
}

uintptr_t Machine::allocate_pinned(size_t requested) {
  Lock lock(mutex);
  size_t size = round_up(requested, kPage);
  auto& ready = reusable_[{-1, size}];
  Block block;
  if (!ready.empty()) {
    block = std::move(ready.back());
    ready.pop_back();
  } else {
    block.begin = pinned_next_;
    pinned_next_ += size;
  }
  block.size = size;
  block.requested = requested;
  uintptr_t begin = block.begin;
  std::memset(shadow(begin), 0xff, size);
  blocks_[begin] = std::move(block);
  return begin;
}

void Machine::free(uintptr_t address) {
  Lock lock(mutex);
  auto found = blocks_.find(address);
  if (found == blocks_.end()) return;
  Block block = std::move(found->second);
  blocks_.erase(found);
  if (block.device < 0) {
    // As torch's host allocator: the memory is handed on only once the copies from and to it are over.
    for (size_t i = 0; i < streams_.size(); ++i) drain(int(i));
    block.steps.clear();
    protect(block, 0);
    reusable_[{-1, block.size}].push_back(std::move(block));
    return;
  }
  stats_[block.device].now -= block.size;
  stats_[block.device].freed += block.size;
  stats_[block.device].count -= 1;
  for (int other : block.also_on) {  // record_stream: handed on after what these streams have now
    Event event;
    record(event, other);
    wait(event, block.stream);
  }
  freed_[block.stream].push_back(std::move(block));
}

// At the next allocation from a stream's pool its freed memory may be handed on: is everybody done with it?
void Machine::check_freed(int device, int index) {
  Stream& pool = stream(index);
  for (Block& block : freed_[index]) {
    Step reuse{pool.actor, 0, true, block.begin, block.begin + block.size, "reuse of freed memory", nullptr};
    check(block, reuse, pool.clock, "memory was freed, and its next owner may have it, while it is still in use");
    reusable_[{index, block.size}].push_back(std::move(block));
  }
  freed_[index].clear();
}

void Machine::record_stream(uintptr_t address, int index) {
  Lock lock(mutex);
  Block* block = block_of(address);
  if (block && block->stream != index) block->also_on.insert(index);
}

void Machine::protect(Block& block, int level) {
  if (block.protection == level) return;
  int flags = level == 0 ? PROT_READ | PROT_WRITE : level == 1 ? PROT_READ : PROT_NONE;
  mprotect(reinterpret_cast<void*>(block.begin), block.size, flags);
  block.protection = level;
  if (level) {
    protected_.insert(block.begin);
  } else {
    protected_.erase(block.begin);
  }
}

// Give page-locked memory back to a host thread that knows of the end of the copies.
void Machine::open_what_is_over(const Clock& known) {
  for (uintptr_t begin : std::vector<uintptr_t>(protected_.begin(), protected_.end())) {
    Block* block = block_of(begin);
    auto& steps = block->steps;
    steps.erase(std::remove_if(steps.begin(), steps.end(), [&](const Step& s) { return covered(s, known); }), steps.end());
    bool written = std::any_of(steps.begin(), steps.end(), [](const Step& s) { return s.write; });
    protect(*block, written ? 2 : steps.empty() ? 0 : 1);
  }
}

bool Machine::host_fault(uintptr_t address) {
  Lock lock(mutex);
  Block* block = block_of(address);
  if (!block || !block->protection) return true;  // another thread opened it in the meantime
  // With only reads under way, it is a write that faults.
  Step access{me(), mine()[me()], true, address, address + 1, "the host's access", nullptr};
  std::vector<Step> pending = block->steps;
  check(*block, access, mine(), "the host touches page-locked memory that a copy is using");
  block->steps.clear();
  protect(*block, 0);
  return true;
}

// Steps.

void Machine::check(Block& block, const Step& later, const Clock& known, const std::string& why) {
  for (const Step& earlier : block.steps) {
    bool conflict = (earlier.write || later.write) && earlier.begin < later.end && later.begin < earlier.end;
    if (conflict && earlier.actor != later.actor && !covered(earlier, known)) {
      reports_.push_back({earlier, later, why});
      return;
    }
  }
}

void Machine::step(int index, const std::vector<Range>& ranges, const std::string& what, const Place& place) {
  Lock lock(mutex);
  Stream& on = stream(index);
  join(on.clock, mine());
  tick();
  if (on.clock.size() <= size_t(on.actor)) on.clock.resize(on.actor + 1);
  uint32_t stamp = ++on.clock[on.actor];
  for (const Range& range : ranges) {
    Block* block = block_of(range.begin);
    if (!block) continue;
    Step now{on.actor, stamp, range.write, range.begin, range.end, what, place};
    check(*block, now, on.clock, "nothing orders these two");
    auto& steps = block->steps;
    // What this step covers and comes after needs no looking at again.
    steps.erase(std::remove_if(steps.begin(), steps.end(),
                               [&](const Step& s) {
                                 bool inside = now.begin <= s.begin && s.end <= now.end;
                                 return inside && (now.write || (!s.write && s.actor == now.actor)) &&
                                        (s.actor == now.actor || covered(s, on.clock));
                               }),
                steps.end());
    steps.push_back(std::move(now));
    if (block->device < 0) protect(*block, std::max(block->protection, range.write ? 2 : 1));
  }
}

void Machine::push(int index, std::function<void()> work) {
  Lock lock(mutex);
  stream(index).queue.push_back(std::move(work));
  ++stream(index).issued;
}

void Machine::drain(int index, uint64_t upto) {
  Lock lock(mutex);
  Stream& on = stream(index);
  while (on.over < std::min(upto, on.issued)) {
    auto work = std::move(on.queue.front());
    on.queue.pop_front();
    ++on.over;
    work();
  }
}

int Machine::new_stream(int device) {
  Lock lock(mutex);
  auto made = std::make_unique<Stream>();
  made->device = device;
  for (auto& other : streams_) made->id += other->device == device;
  made->actor = new_actor("stream " + std::to_string(made->id) + " of soft:" + std::to_string(device));
  streams_.push_back(std::move(made));
  return int(streams_.size()) - 1;
}

int Machine::find_stream(int device, int64_t id) const {
  for (size_t i = 0; i < streams_.size(); ++i) {
    if (streams_[i]->device == device && streams_[i]->id == id) return int(i);
  }
  return -1;
}

void Machine::record(Event& event, int index, bool timed) {
  Lock lock(mutex);
  Stream& on = stream(index);
  if (timed) {
    event.when = std::make_shared<double>(0);
    push(index, [when = event.when] {
      *when = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
    });
  }
  join(on.clock, mine());
  tick();
  event.stream = index;
  event.issued = on.issued;
  event.clock = on.clock;
}

double Machine::seconds(const Event& event) {
  Lock lock(mutex);
  return event.when ? *event.when : 0;
}

void Machine::wait(const Event& event, int index) {
  Lock lock(mutex);
  if (event.stream < 0) return;
  join(stream(index).clock, event.clock);
  if (event.stream == index) return;
  push(index, [this, other = event.stream, upto = event.issued] { drain(other, upto); });
}

void Machine::synchronize(const Event& event) {
  Lock lock(mutex);
  if (event.stream < 0) return;
  drain(event.stream, event.issued);
  join(mine(), event.clock);
  open_what_is_over(mine());
}

void Machine::synchronize_stream(int index) {
  Event event;
  Lock lock(mutex);
  record(event, index);
  synchronize(event);
}

void Machine::synchronize_device(int device) {
  Lock lock(mutex);
  for (size_t i = 0; i < streams_.size(); ++i) {
    if (streams_[i]->device == device) synchronize_stream(int(i));
  }
}

bool Machine::query(const Event& event) {
  Lock lock(mutex);
  if (event.stream < 0) return true;
  bool over = stream(event.stream).over >= event.issued;
  if (over) {
    join(mine(), event.clock);
    open_what_is_over(mine());
  }
  drain(event.stream, event.issued);  // late, but not never: who asks again will hear that it is over
  return over;
}

}  // namespace soft
