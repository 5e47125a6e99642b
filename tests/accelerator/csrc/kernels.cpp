#include "kernels.h"

#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/view_native.h>
#include <c10/core/DeviceGuard.h>
#include <torch/csrc/profiler/combined_traceback.h>
#include <torch/library.h>

#include <unordered_map>
#include <unordered_set>

namespace soft {

Place here() { return torch::CapturedTraceback::gather(/*python=*/true, /*script=*/false, /*cpp=*/false); }

namespace {

using Storages = std::unordered_map<c10::StorageImpl*, c10::Storage>;

bool on_device(const at::Tensor& tensor) { return tensor.defined() && tensor.device().type() == kDevice; }

uintptr_t address(const at::Tensor& tensor) { return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()); }

// Storages that are one stay one: CPU kernels look whether their arguments overlap.
at::Tensor shadow_in(const at::Tensor& tensor, Storages& storages) {
  if (!on_device(tensor)) return tensor;
  c10::StorageImpl* storage = tensor.storage().unsafeGetStorageImpl();
  auto found = storages.find(storage);
  if (found == storages.end()) {
    void* bytes = storage->data() ? Machine::get().shadow(reinterpret_cast<uintptr_t>(storage->data())) : nullptr;
    auto made = c10::Storage(c10::Storage::use_byte_size_t(), storage->nbytes(),
                             at::DataPtr(bytes, c10::Device(c10::DeviceType::CPU)), nullptr, /*resizable=*/false);
    found = storages.emplace(storage, std::move(made)).first;
  }
  auto made = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(found->second),
                                                       c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  return made;
}

at::Tensor view_over(const at::Tensor& of, const at::Tensor& like) {
  auto made = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(of.storage()), of.key_set(), like.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return made;
}

}  // namespace

at::Tensor shadow_of(const at::Tensor& tensor) {
  Storages storages;
  return shadow_in(tensor, storages);
}

void add_range(std::vector<Range>& ranges, const at::Tensor& tensor, bool write) {
  if (!tensor.defined() || tensor.numel() == 0) return;
  uintptr_t begin = address(tensor);
  if (!Machine::get().is_device(begin) && !Machine::get().is_pinned(begin)) return;
  int64_t last = 0;
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) last += (tensor.size(dim) - 1) * tensor.stride(dim);
  ranges.push_back({begin, begin + (last + 1) * tensor.itemsize(), write});
}

namespace {

// The step of a kernel, and everything that comes before it on its stream.
int begin_kernel(int device, const std::vector<Range>& ranges, const std::string& name) {
  Place place = here();
  int stream = current_stream(device);
  Machine::get().step(stream, ranges, name, place);
  Machine::get().drain(stream);
  return stream;
}

at::Tensor empty_on(int device, c10::IntArrayRef sizes, c10::IntArrayRef strides, at::ScalarType dtype) {
  c10::DeviceGuard guard(c10::Device(kDevice, c10::DeviceIndex(device)));
  return at::detail::empty_strided_generic(sizes, strides, c10::GetAllocator(kDevice),
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), dtype);
}

at::Tensor copied_to(int device, const at::Tensor& host) {
  at::Tensor made = empty_on(device, host.sizes(), host.strides(), host.scalar_type());
  Machine::get().drain(current_stream(device));  // the NaNs that fill it
  shadow_of(made).copy_(host);
  return made;
}

void resize_to(const at::Tensor& tensor, c10::IntArrayRef sizes, c10::IntArrayRef strides) {
  int64_t last = 0, numel = 1;
  for (size_t dim = 0; dim < sizes.size(); ++dim) {
    numel *= sizes[dim];
    last += (sizes[dim] - 1) * strides[dim];
  }
  size_t needed = numel ? (tensor.storage_offset() + last + 1) * tensor.itemsize() : 0;
  if (needed > tensor.storage().nbytes()) at::detail::getPrivateUse1Hooks().resizePrivateUse1Bytes(tensor.storage(), needed);
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides);
}

// Their results have sizes that the host must know, so it waits, as on a GPU.
const std::unordered_set<std::string> host_waits = {
    "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim",
    "aten::unique_consecutive", "aten::repeat_interleave", "aten::is_nonzero"};

// [Note: fallback] Any operator, by the CPU's kernel on shadows: its bits are the CPU's. Results that are new are copied
// to device memory; views of an argument become views of it; an argument that was written is returned as it came.
struct Call {
  const c10::OperatorHandle& op;
  torch::jit::Stack* stack;
  size_t first;
  int device = -1;
  Storages storages;
  std::vector<Range> ranges;
  std::vector<c10::IValue> given;
  std::vector<std::pair<at::Tensor, at::Tensor>> to_resize;  // an argument of no elements, and what stands for it

  at::Tensor argument(const at::Tensor& tensor, bool write) {
    if (!on_device(tensor)) return tensor;
    TORCH_CHECK(device < 0 || device == tensor.device().index(), op.schema().name(), ": tensors on two devices");
    device = tensor.device().index();
    add_range(ranges, tensor, write);
    if (write && tensor.numel() == 0) {
      at::Tensor stand_in = at::empty({0}, tensor.options().device(c10::kCPU));
      if (tensor.dim() == 1) {
        to_resize.emplace_back(tensor, stand_in);
        return stand_in;
      }
    }
    return shadow_in(tensor, storages);
  }

  c10::IValue argument(const c10::IValue& value, const c10::Argument& described) {
    bool write = described.alias_info() && described.alias_info()->isWrite();
    if (value.isTensor()) return argument(value.toTensor(), write);
    if (value.isTensorList()) {
      std::vector<at::Tensor> all;
      for (const at::Tensor& tensor : value.toTensorList()) all.push_back(argument(tensor, write));
      return all;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> all;
      for (std::optional<at::Tensor> tensor : value.toOptionalTensorList()) {
        all.push_back(tensor ? std::optional(argument(*tensor, write)) : tensor);
      }
      return all;
    }
    if (value.isDevice() && value.toDevice().type() == kDevice) {
      c10::Device wanted = value.toDevice();
      if (device < 0) device = wanted.has_index() ? wanted.index() : current_device();
      return c10::Device(c10::kCPU);
    }
    return value;
  }

  c10::IValue result(const c10::IValue& value, const c10::Argument& described) {
    const c10::AliasInfo* alias = described.alias_info();
    if (alias && !alias->beforeSets().empty()) {
      const auto& arguments = op.schema().arguments();
      for (size_t i = 0; i < arguments.size(); ++i) {
        const c10::AliasInfo* of = arguments[i].alias_info();
        if (!of || of->beforeSets() != alias->beforeSets()) continue;
        if (alias->isWrite()) return given[i];
        const at::Tensor& base = given[i].toTensor();
        if (value.isTensor()) return view_over(base, value.toTensor());
        std::vector<at::Tensor> views;
        for (const at::Tensor& view : value.toTensorList()) views.push_back(view_over(base, view));
        return views;
      }
    }
    if (value.isTensor() && value.toTensor().defined()) return copied_to(device, value.toTensor());
    if (value.isTensorList()) {
      std::vector<at::Tensor> all;
      for (const at::Tensor& tensor : value.toTensorList()) all.push_back(copied_to(device, tensor));
      return all;
    }
    return value;
  }
};

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  size_t count = schema.arguments().size();
  Call call{op, stack, stack->size() - count};
  for (size_t i = 0; i < count; ++i) {
    c10::IValue& value = (*stack)[call.first + i];
    call.given.push_back(value);
    value = call.argument(value, schema.arguments()[i]);
  }
  if (call.device < 0) call.device = current_device();
  bool is_view = !schema.returns().empty() && schema.returns()[0].alias_info() && !schema.returns()[0].alias_info()->isWrite();
  int stream = current_stream(call.device);
  if (!is_view) begin_kernel(call.device, call.ranges, schema.name());
  {
    Plain plain;
    op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
    for (auto& [argument, stand_in] : call.to_resize) {
      if (stand_in.numel() == 0) continue;
      resize_to(argument, stand_in.sizes(), stand_in.strides());
      Machine::get().drain(stream);
      shadow_of(argument).copy_(stand_in);
    }
    size_t results = schema.returns().size();
    bool host_knows = host_waits.count(schema.name()) > 0;
    for (size_t i = 0; i < results; ++i) {
      c10::IValue& value = (*stack)[stack->size() - results + i];
      host_knows |= !value.isTensor() && !value.isTensorList();
      value = call.result(value, schema.returns()[i]);
    }
    if (host_knows) Machine::get().synchronize_stream(stream);
  }
}

// Direct ones.

at::Tensor empty_memory_format(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                               std::optional<at::Device> device, std::optional<bool>,
                               std::optional<at::MemoryFormat> memory_format) {
  c10::OptionalDeviceGuard guard(device && device->has_index() ? device : std::nullopt);
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), c10::GetAllocator(kDevice),
                                   c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype),
                                   memory_format);
}

at::Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>) {
  int index = device && device->has_index() ? device->index() : current_device();
  return empty_on(index, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), c10::dtype_or_default(dtype));
}

at::Tensor as_strided(const at::Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                      std::optional<c10::SymInt> offset) {
  auto made = at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(self.storage()), self.key_set(),
                                                       self.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(
      C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride),
      offset ? offset->guard_int(__FILE__, __LINE__) : self.storage_offset());
  return made;
}

at::Tensor view(const at::Tensor& self, c10::SymIntArrayRef size) {
  return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size));
}

const at::Tensor& resize_(const at::Tensor& self, c10::SymIntArrayRef size, std::optional<at::MemoryFormat> format) {
  auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  if (self.sizes() == sizes) return self;
  TORCH_CHECK(!format || *format == at::MemoryFormat::Contiguous, "soft: resize_ is contiguous");
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t dim = sizes.size(); dim-- > 1;) strides[dim - 1] = strides[dim] * std::max<int64_t>(sizes[dim], 1);
  resize_to(self, sizes, strides);
  return self;
}

at::Tensor& set_storage(at::Tensor& self, at::Storage source, c10::SymInt offset, c10::SymIntArrayRef size,
                        c10::SymIntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t dim = sizes.size(); dim-- > 1;) strides[dim - 1] = strides[dim] * std::max<int64_t>(sizes[dim], 1);
  if (!stride.empty()) strides = C10_AS_INTARRAYREF_SLOW(stride).vec();
  self.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides, offset.guard_int(__FILE__, __LINE__));
  return self;
}

at::Tensor& set_whole_storage(at::Tensor& self, at::Storage source) {
  int64_t count = int64_t(source.nbytes() / self.itemsize());
  return set_storage(self, std::move(source), 0, c10::SymIntArrayRef{c10::SymInt(count)}, {});
}

at::Tensor& set_tensor(at::Tensor& self, const at::Tensor& source) {
  return set_storage(self, source.storage(), source.storage_offset(), c10::fromIntArrayRefSlow(source.sizes()),
                     c10::fromIntArrayRefSlow(source.strides()));
}

at::Scalar local_scalar_dense(const at::Tensor& self) {
  std::vector<Range> ranges;
  add_range(ranges, self, false);
  int stream = begin_kernel(self.device().index(), ranges, "aten::item");
  Machine::get().synchronize_stream(stream);
  return shadow_of(self).item();
}

// Copies.

bool is_pinned(const at::Tensor& tensor) { return tensor.device().is_cpu() && tensor.numel() && Machine::get().is_pinned(address(tensor)); }

// What a copy will read or write when its turn comes: bytes, without a hold on their owner, as on a GPU.
at::Tensor bytes_of(const at::Tensor& tensor) {
  Storages storages;
  if (on_device(tensor)) return shadow_in(tensor, storages);
  if (!is_pinned(tensor)) return tensor;
  auto* storage = tensor.storage().unsafeGetStorageImpl();
  void* bytes = Machine::get().shadow(reinterpret_cast<uintptr_t>(storage->data()));
  auto made = at::detail::make_tensor<c10::TensorImpl>(
      c10::Storage(c10::Storage::use_byte_size_t(), storage->nbytes(), at::DataPtr(bytes, c10::Device(c10::kCPU)), nullptr, false),
      c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  return made;
}

void copy_bytes(at::Tensor to, const at::Tensor& from) {
  Plain plain;
  to.copy_(from);
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  if (to.numel() == 0) return to;
  Machine& machine = Machine::get();
  Place place = here();
  int device = on_device(from) ? from.device().index() : to.device().index();
  int stream = current_stream(device);
  bool between = on_device(from) && on_device(to) && from.device() != to.device();
  if (between) {  // as torch: the source's stream copies, after the target's and before what comes next there
    Event ready;
    machine.record(ready, current_stream(to.device().index()));
    machine.wait(ready, stream);
  }
  std::vector<Range> ranges;
  add_range(ranges, from, false);
  add_range(ranges, to, true);
  bool both = on_device(from) && on_device(to);
  bool late = both || (non_blocking && (on_device(from) ? is_pinned(to) : true));
  at::Tensor source = bytes_of(from), target = bytes_of(to);
  if (late && !both && !on_device(from) && !is_pinned(from)) {
    Plain plain;
    source = source.clone();  // pageable memory is the caller's again at once
  }
  machine.step(stream, ranges, "copy", place);
  if (late) {
    machine.push(stream, [source, target] { copy_bytes(target, source); });
  } else {
    machine.drain(stream);
    copy_bytes(target, source);
    machine.synchronize_stream(stream);
  }
  if (between) {
    Event over;
    machine.record(over, stream);
    machine.wait(over, current_stream(to.device().index()));
  }
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  if (to.sizes() != from.sizes()) to.resize_(from.sizes());
  return copy_from(from, to, false);
}

void record_stream(at::Tensor& self, c10::Stream stream) {
  Machine::get().record_stream(reinterpret_cast<uintptr_t>(self.storage().data()), index_of(stream));
}

// What the tests ask and say.

std::string where(const Place& place) {
  if (!place) return "";
  auto* traceback = static_cast<torch::CapturedTraceback*>(place.get());
  auto symbolized = torch::symbolize({traceback});
  std::string text;
  int shown = 0;
  for (uint64_t index : symbolized.tracebacks.at(0)) {
    const auto& frame = symbolized.all_frames[index];
    if (frame.filename.find("site-packages/torch/") != std::string::npos) continue;
    text += "\n      " + frame.filename + ":" + std::to_string(frame.lineno) + " in " + frame.funcname;
    if (++shown == 5) break;
  }
  return text;
}

std::vector<std::string> take_reports() {
  std::vector<std::string> texts;
  for (const Report& report : Machine::get().take_reports()) {
    std::string text = report.why;
    for (const Step* step : {&report.earlier, &report.later}) {
      text += "\n  " + step->what + (step->write ? " (writes)" : " (reads)") + ", on " +
              Machine::get().name_of(step->actor) + where(step->place);
    }
    texts.push_back(text);
  }
  return texts;
}

void set_capacity(int64_t device, int64_t bytes) { Machine::get().set_capacity(int(device), bytes); }

}  // namespace

// [Note: handing over] Called with Python's lock held all the while, not as operators, which let go of it. A thread that
// nobody waits for, as a progress bar's, may end while Python does: whoever asks for the lock then is ended where it
// stands, and a thread that is ended inside C++ takes the process down ("terminate called without an active exception").
extern "C" int64_t soft_publish() { return Machine::get().publish(); }
extern "C" void soft_take(int64_t token) { Machine::get().take(token); }

TORCH_LIBRARY(soft, library) {
  library.def("take_reports", &take_reports);
  library.def("set_capacity", &set_capacity);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) { library.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", &empty_memory_format);
  library.impl("empty_strided", &empty_strided);
  library.impl("as_strided", &as_strided);
  library.impl("view", &view);
  library.impl("resize_", &resize_);
  library.impl("set_.source_Storage_storage_offset", &set_storage);
  library.impl("set_.source_Storage", &set_whole_storage);
  library.impl("set_.source_Tensor", &set_tensor);
  library.impl("_local_scalar_dense", &local_scalar_dense);
  library.impl("_copy_from", &copy_from);
  library.impl("_copy_from_and_resize", &copy_from_and_resize);
  library.impl("record_stream", &record_stream);
  // Where the CPU has a kernel of its own and others a composition, or where the choice looks at the device, it is the
  // CPU's choice that gives the CPU's bits.
  for (const char* name : {"scaled_dot_product_attention", "convolution", "_convolution"}) {
    library.impl(name, torch::CppFunction::makeFromBoxedFunction<&fallback>());
  }
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const c10::OperatorName& name : dispatcher.getAllOpNames()) {
    if (name.name.rfind("aten::", 0) != 0) continue;
    auto op = dispatcher.findOp(name);
    if (!op || !op->hasKernelForDispatchKey(c10::DispatchKey::CPU)) continue;
    if (op->hasKernelForDispatchKey(c10::DispatchKey::PrivateUse1)) continue;
    bool composite = op->hasKernelForDispatchKey(c10::DispatchKey::CompositeExplicitAutograd) ||
                     op->hasKernelForDispatchKey(c10::DispatchKey::CompositeExplicitAutogradNonFunctional) ||
                     op->hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd);
    if (!composite) continue;
    std::string full = name.name.substr(6) + (name.overload_name.empty() ? "" : "." + name.overload_name);
    library.impl(full.c_str(), torch::CppFunction::makeFromBoxedFunction<&fallback>());
  }
}

}  // namespace soft
