// Kernels of the device, which are the CPU's own on the shadow of device memory.
#pragma once
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>

#include "device.h"

namespace soft {

// The CPU's kernels and nothing else. What waits in a queue runs where something needs it, also while memory is freed in
// the middle of somebody's mode in Python (fake tensors, as DTensor has them): that must neither see nor refuse it.
struct Plain {
  at::AutoDispatchBelowADInplaceOrView below;
  c10::impl::ExcludeDispatchKeyGuard without_modes{
      c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot})};
};

at::Tensor shadow_of(const at::Tensor& tensor);  // a CPU tensor over the same bytes; others as they are
void add_range(std::vector<Range>& ranges, const at::Tensor& tensor, bool write);

}  // namespace soft
