// The device as c10 sees it: guard, streams and events, allocators, hooks.
#include "device.h"

#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace soft {

namespace {
thread_local int device_now = 0;
thread_local int stream_now[kDevices] = {0, 1};  // the machine makes the default streams first
}  // namespace

int current_device() { return device_now; }
int current_stream(int device) { return stream_now[device]; }
int exchange_device(int device) {
  TORCH_CHECK(device >= 0 && device < kDevices, "soft: there is no device ", device);
  return std::exchange(device_now, device);
}
int exchange_stream(int index) { return std::exchange(stream_now[Machine::get().stream(index).device], index); }
int index_of(c10::Stream stream) {
  int index = Machine::get().find_stream(stream.device_index(), stream.id());
  TORCH_CHECK(index >= 0, "soft: there is no such stream");
  return index;
}
c10::Stream stream_of(int index) {
  Stream& stream = Machine::get().stream(index);
  return c10::Stream(c10::Stream::UNSAFE, c10::Device(kDevice, c10::DeviceIndex(stream.device)), stream.id);
}

namespace {

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kDevice; }
  c10::Device exchangeDevice(c10::Device device) const override {
    return {kDevice, c10::DeviceIndex(exchange_device(device.index()))};
  }
  c10::Device getDevice() const override { return {kDevice, c10::DeviceIndex(device_now)}; }
  void setDevice(c10::Device device) const override { exchange_device(device.index()); }
  void uncheckedSetDevice(c10::Device device) const noexcept override { device_now = device.index(); }
  c10::Stream getStream(c10::Device device) const override {
    return stream_of(current_stream(device.has_index() ? device.index() : device_now));
  }
  c10::Stream getDefaultStream(c10::Device device) const override {
    return stream_of(device.has_index() ? device.index() : device_now);
  }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override { return getNewStream(device, 0); }
  c10::Stream getNewStream(c10::Device device, int) const override {
    return stream_of(Machine::get().new_stream(device.has_index() ? device.index() : device_now));
  }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream_of(exchange_stream(index_of(stream))); }
  void* getStreamNativeHandle(const c10::Stream stream) const override { return &Machine::get().stream(index_of(stream)); }
  c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }
  bool queryStream(const c10::Stream& stream) const override {
    Event event;
    Machine::get().record(event, index_of(stream));
    return Machine::get().query(event);
  }
  void synchronizeStream(const c10::Stream& stream) const override { Machine::get().synchronize_stream(index_of(stream)); }
  void synchronizeDevice(const c10::DeviceIndex device) const override { Machine::get().synchronize_device(device); }

  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override { delete static_cast<Event*>(event); }
  void record(void** event, const c10::Stream& stream, const c10::DeviceIndex, const c10::EventFlag flag) const override {
    if (!*event) *event = new Event();
    Machine::get().record(*static_cast<Event*>(*event), index_of(stream), flag == c10::EventFlag::BACKEND_DEFAULT);
  }
  void block(void* event, const c10::Stream& stream) const override {
    if (event) Machine::get().wait(*static_cast<Event*>(event), index_of(stream));
  }
  bool queryEvent(void* event) const override { return !event || Machine::get().query(*static_cast<Event*>(event)); }
  void synchronizeEvent(void* event) const override {
    if (event) Machine::get().synchronize(*static_cast<Event*>(event));
  }
  double elapsedTime(void* from, void* to, const c10::DeviceIndex) const override {
    Machine& machine = Machine::get();
    return 1000 * (machine.seconds(*static_cast<Event*>(to)) - machine.seconds(*static_cast<Event*>(from)));
  }
  void recordDataPtrOnStream(const c10::DataPtr& data, const c10::Stream& stream) const override {
    Machine::get().record_stream(reinterpret_cast<uintptr_t>(data.get()), index_of(stream));
  }
};

void give_back(void* pointer) { Machine::get().free(reinterpret_cast<uintptr_t>(pointer)); }

struct DeviceMemory final : c10::DeviceAllocator {
  c10::DataPtr allocate(size_t size) override {
    int device = device_now;
    c10::Device on(kDevice, c10::DeviceIndex(device));
    if (size == 0) return {nullptr, nullptr, &give_back, on};
    uintptr_t begin = Machine::get().allocate(device, current_stream(device), size, here());
    TORCH_CHECK_WITH(
        OutOfMemoryError, begin, "soft:", device, " is out of memory: ", size, " bytes were asked for, ",
        Machine::get().stats(device).now, " of ", Machine::get().capacity(device), " are in use");
    auto pointer = reinterpret_cast<void*>(begin);
    return {pointer, pointer, &give_back, on};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void* to, const void* from, size_t count) const override {
    std::memcpy(Machine::get().shadow(reinterpret_cast<uintptr_t>(to)),
                Machine::get().shadow(reinterpret_cast<uintptr_t>(from)), count);
  }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t = {0, 0}) override {}
  void recordStream(const c10::DataPtr& data, c10::Stream stream) override {
    Machine::get().record_stream(reinterpret_cast<uintptr_t>(data.get()), index_of(stream));
  }
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex device) override {
    c10::CachingDeviceAllocator::DeviceStats all;
    const Stats& stats = Machine::get().stats(device);
    for (auto* bytes : {&all.allocated_bytes, &all.reserved_bytes, &all.active_bytes, &all.requested_bytes}) {
      auto& sum = (*bytes)[0];
      sum.current = stats.now;
      sum.peak = stats.peak;
      sum.allocated = stats.allocated;
      sum.freed = stats.freed;
    }
    return all;
  }
  void resetAccumulatedStats(c10::DeviceIndex device) override {
    Machine::get().stats(device).allocated = Machine::get().stats(device).freed = 0;
  }
  void resetPeakStats(c10::DeviceIndex device) override {
    Machine::get().stats(device).peak = Machine::get().stats(device).now;
  }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex device) override {
    int64_t capacity = Machine::get().capacity(device);
    return {capacity - Machine::get().stats(device).now, capacity};
  }
};

struct PinnedMemory final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    if (size == 0) return {nullptr, nullptr, &give_back, c10::DeviceType::CPU};
    auto pointer = reinterpret_cast<void*>(Machine::get().allocate_pinned(size));
    return {pointer, pointer, &give_back, c10::DeviceType::CPU};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void* to, const void* from, size_t count) const override { default_copy_data(to, from, count); }
};

DeviceMemory device_memory;
PinnedMemory pinned_memory;

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return kDevices; }
  void setCurrentDevice(c10::DeviceIndex device) const override { exchange_device(device); }
  c10::DeviceIndex getCurrentDevice() const override { return c10::DeviceIndex(device_now); }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex device) const override {
    return c10::DeviceIndex(exchange_device(device));
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex device) const override { return exchangeDevice(device); }
  bool isPinnedPtr(const void* data) const override { return Machine::get().is_pinned(reinterpret_cast<uintptr_t>(data)); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory; }
  c10::Device getDeviceFromPtr(void* data) const override {
    int device = 0;
    TORCH_CHECK(Machine::get().is_device(reinterpret_cast<uintptr_t>(data), &device), "soft: not our memory");
    return {kDevice, c10::DeviceIndex(device)};
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t size) const override;
};

// FSDP frees a tensor by resizing its storage to nothing. What is kept of the bytes is copied in stream order.
void Hooks::resizePrivateUse1Bytes(const c10::Storage& storage, size_t size) const {
  c10::StorageImpl* impl = storage.unsafeGetStorageImpl();
  int before = exchange_device(impl->device().index());
  c10::DataPtr data = device_memory.allocate(size);
  size_t kept = std::min(size, size_t(impl->nbytes()));
  if (kept) {
    Machine& machine = Machine::get();
    int stream = current_stream(device_now);
    auto from = reinterpret_cast<uintptr_t>(impl->data());
    auto to = reinterpret_cast<uintptr_t>(data.get());
    machine.step(stream, {{from, from + kept, false}, {to, to + kept, true}}, "resize", here());
    machine.drain(stream);
    std::memcpy(machine.shadow(to), machine.shadow(from), kept);
  }
  impl->set_data_ptr_noswap(std::move(data));
  impl->set_nbytes(size);
  exchange_device(before);
}

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Registration {
  Registration() {
    Machine::get();
    c10::SetAllocator(kDevice, &device_memory);
    at::RegisterPrivateUse1HooksInterface(new Hooks());
  }
} registration;

}  // namespace
}  // namespace soft
