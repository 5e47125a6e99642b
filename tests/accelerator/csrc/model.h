// The machine behind the device "soft": memory, streams, and the order of all that reads and writes.
//
// No torch in here. [Note: order] Each stream and each host thread is an actor with a vector clock: clock[a] is the last
// step of actor a that is known to be over before the next step of the owner. A step is stamped with its actor's own
// count. Two steps on the same bytes, one of them a write, are ordered where the clock of the later one covers the
// stamp of the earlier one; otherwise both are reported. Steps are ordered by
//   issue    a stream's step comes after all that its host thread did and knew before;
//   event    a stream, or a host thread, that waits for an event comes after all that the event's stream had then;
//   hand     what one host thread publishes (a future's result, a started thread) and another one takes.
// [Note: late] Copies wait in their stream's queue until something needs them: a host that synchronises, a kernel on the
// same stream, or a stream that waits for their event. Kernels run at once, after their stream's queue. So a missing
// wait gives wrong bits as well as a report.
#pragma once
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace soft {

constexpr int kDevices = 2;
constexpr size_t kAlign = 512;
constexpr size_t kPage = 4096;

using Place = std::shared_ptr<void>;  // where in the program; opaque here
using Clock = std::vector<uint32_t>;  // by actor; missing entries are 0

void join(Clock& into, const Clock& other);

struct Step {
  int actor;
  uint32_t stamp;
  bool write;
  uintptr_t begin, end;
  std::string what;
  Place place;
};

struct Report {
  Step earlier, later;
  std::string why;
};

struct Block {
  uintptr_t begin = 0;
  size_t size = 0;       // rounded
  size_t requested = 0;
  int device = -1;       // -1: page-locked host memory
  int stream = -1;       // the pool it comes from
  std::vector<Step> steps;
  std::set<int> also_on;  // streams of record_stream
  int protection = 0;     // page-locked memory: 0 open, 1 not to be written, 2 not to be touched
};

struct Stream {
  int device = 0;
  int64_t id = 0;
  int actor = 0;
  Clock clock;
  std::deque<std::function<void()>> queue;
  uint64_t issued = 0, over = 0;
};

struct Event {
  int stream = -1;  // never recorded
  uint64_t issued = 0;
  Clock clock;
  std::shared_ptr<double> when;  // seconds of the host's clock at which the stream came to it; where it is timed
};

struct Stats {
  int64_t now = 0, peak = 0, allocated = 0, freed = 0, count = 0;
};

// Bytes [begin, end) of device or page-locked memory that a step reads or writes.
struct Range {
  uintptr_t begin, end;
  bool write;
};

class Machine {
 public:
  static Machine& get();
  std::recursive_mutex mutex;  // never held while Python's lock is taken

  // Memory. Addresses of device memory fault on the host; `shadow` is where kernels find the same bytes.
  uintptr_t allocate(int device, int stream, size_t size, const Place& place);  // 0: out of memory
  uintptr_t allocate_pinned(size_t size);
  void free(uintptr_t address);
  bool is_device(uintptr_t address, int* device = nullptr) const;
  bool is_pinned(uintptr_t address) const;
  void* shadow(uintptr_t address) const;
  void record_stream(uintptr_t address, int stream);
  Stats& stats(int device) { return stats_[device]; }
  void set_capacity(int device, int64_t bytes) { capacity_[device] = bytes; }
  int64_t capacity(int device) const { return capacity_[device]; }

  // Streams, by index: the default ones come first.
  int new_stream(int device);
  Stream& stream(int index) { return *streams_[index]; }
  int find_stream(int device, int64_t id) const;
  void step(int stream, const std::vector<Range>& ranges, const std::string& what, const Place& place);
  void push(int stream, std::function<void()> work);
  void drain(int stream, uint64_t upto = UINT64_MAX);
  void record(Event& event, int stream, bool timed = false);
  double seconds(const Event& event);
  void wait(const Event& event, int stream);
  void synchronize(const Event& event);
  void synchronize_stream(int stream);
  void synchronize_device(int device);
  bool query(const Event& event);

  // Host threads.
  int64_t publish();
  void take(int64_t token);
  std::vector<Report> take_reports();
  std::string name_of(int actor) const;
  bool host_fault(uintptr_t address);  // whether the access may go on

 private:
  Machine();
  int new_actor(std::string name);
  int me();
  Clock& mine();
  void tick();
  Block* block_of(uintptr_t address);
  void check(Block& block, const Step& step, const Clock& known, const std::string& why);
  void check_freed(int device, int stream);
  void protect(Block& block, int level);
  void open_what_is_over(const Clock& known);

  uintptr_t device_begin_[kDevices], device_shadow_[kDevices], device_next_[kDevices];
  uintptr_t pinned_begin_, pinned_shadow_, pinned_next_;
  int64_t capacity_[kDevices];
  Stats stats_[kDevices];
  std::map<uintptr_t, Block> blocks_;                                    // live
  std::map<std::pair<int, size_t>, std::vector<Block>> reusable_;        // by stream (-1: page-locked) and size
  std::map<int, std::vector<Block>> freed_;                              // by stream, not looked at yet
  std::set<uintptr_t> protected_;
  std::vector<std::unique_ptr<Stream>> streams_;
  std::vector<std::string> names_;
  std::map<int, Clock> hosts_;
  std::map<int64_t, Clock> published_;
  int64_t tokens_ = 0;
  std::vector<Report> reports_;
};

}  // namespace soft
