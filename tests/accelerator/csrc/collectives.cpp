// Collectives on device tensors, over gloo and the host's memory.
//
// [Note: collectives] As NCCL's: each process group has a stream of its own, which comes after what the caller's stream
// had, and `wait()` lets the caller's stream, not the host, come after the collective. What goes out is read when the
// collective is issued; what comes in is written as late as copies are. In between gloo works in its own threads, so
// that no rank's collective waits for another rank's host.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/library.h>

#include "kernels.h"

namespace soft {

namespace {

int stream_of_group(c10d::ProcessGroup* group, int device) {
  static std::map<std::pair<c10d::ProcessGroup*, int>, int> streams;
  std::lock_guard<std::recursive_mutex> lock(Machine::get().mutex);
  auto found = streams.find({group, device});
  if (found == streams.end()) found = streams.emplace(std::pair(group, device), Machine::get().new_stream(device)).first;
  return found->second;
}

struct SoftWork final : c10d::Work {
  SoftWork(int device, bool host_waits) : device(device), host_waits(host_waits) {}
  bool isCompleted() override { return Machine::get().query(over); }
  bool isSuccess() const override { return true; }
  void synchronize() override { wait(c10d::kUnsetTimeout); }
  bool wait(std::chrono::milliseconds) override {
    if (host_waits) {
      Machine::get().synchronize(over);
    } else {
      Machine::get().wait(over, current_stream(device));
    }
    kept.clear();
    return true;
  }
  Event over;
  std::vector<at::Tensor> kept;
  int device;
  bool host_waits;
};

struct Staged {
  at::Tensor device, host;
  bool written;
};

// A device tensor's stand-in on the host, and the note of what is to be copied back.
at::Tensor stage(const at::Tensor& tensor, bool written, std::vector<Staged>& staged) {
  if (tensor.device().type() != kDevice) return tensor;
  at::Tensor host = at::empty_like(shadow_of(tensor), at::MemoryFormat::Contiguous);
  staged.push_back({tensor, host, written});
  return host;
}

c10::IValue stage(const c10::IValue& value, bool written, std::vector<Staged>& staged) {
  if (value.isTensor()) return stage(value.toTensor(), written, staged);
  if (value.isTensorList()) {
    std::vector<at::Tensor> all;
    for (const at::Tensor& tensor : value.toTensorList()) all.push_back(stage(tensor, written, staged));
    return all;
  }
  if (value.isList() && value.toListRef().size() && value.toListRef()[0].isTensorList()) {
    std::vector<std::vector<at::Tensor>> lists;
    for (const c10::IValue& list : value.toListRef()) lists.push_back(stage(list, written, staged).toTensorVector());
    return lists;
  }
  return value;
}

void collective(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  size_t count = schema.arguments().size(), first = stack->size() - count;
  std::vector<Staged> staged;
  c10::IValue given = (*stack)[first];
  c10d::ProcessGroup* group = nullptr;
  for (size_t i = 0; i < count; ++i) {
    c10::IValue& value = (*stack)[first + i];
    const std::string& name = schema.arguments()[i].name();
    if (name == "process_group") group = value.toCustomClass<c10d::ProcessGroup>().get();
    value = stage(value, name.rfind("input", 0) != 0, staged);
  }
  TORCH_CHECK(group && !staged.empty(), schema.name(), ": no device tensor");
  Machine& machine = Machine::get();
  int device = staged[0].device.device().index(), stream = stream_of_group(group, device);
  std::vector<Range> ranges;
  for (const Staged& each : staged) add_range(ranges, each.device, each.written);
  Place place = here();
  Event ready;
  machine.record(ready, current_stream(device));
  machine.wait(ready, stream);
  machine.step(stream, ranges, schema.name(), place);
  machine.drain(stream);
  Plain plain;
  for (const Staged& each : staged) each.host.copy_(shadow_of(each.device));
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  auto work = stack->back().toCustomClass<c10d::Work>();
  std::vector<std::pair<at::Tensor, at::Tensor>> back;
  for (const Staged& each : staged) {
    if (each.written) back.emplace_back(shadow_of(each.device), each.host);
  }
  machine.push(stream, [work, back] {
    work->wait();
    Plain plain;
    for (const auto& [to, from] : back) to.copy_(from);
  });
  auto ours = c10::make_intrusive<SoftWork>(device, schema.name() == "c10d::barrier");
  machine.record(ours->over, stream);
  for (const Staged& each : staged) ours->kept.push_back(each.device);
  stack->back() = c10::IValue(c10::intrusive_ptr<c10d::Work>(std::move(ours)));
  if (schema.returns().size() == 2) (*stack)[stack->size() - 2] = std::move(given);
}

struct Quiet : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

struct Registration {
  torch::Library library{torch::Library::IMPL, "c10d", c10::DispatchKey::PrivateUse1, __FILE__, __LINE__};
  Registration() {
    Quiet quiet;  // torch warns where a registration takes the place of its own
    c10::WarningUtils::WarningHandlerGuard guard(&quiet);
    for (const char* name : {"broadcast_", "allreduce_", "allgather_", "_allgather_base_", "allgather_into_tensor_coalesced_",
                             "scatter_", "gather_", "_reduce_scatter_base_", "alltoall_", "alltoall_base_", "barrier"}) {
      library.impl(name, torch::CppFunction::makeFromBoxedFunction<&collective>());
    }
  }
} registration;

}  // namespace
}  // namespace soft
