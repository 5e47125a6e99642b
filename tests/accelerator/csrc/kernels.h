// Kernels of the device, which are the CPU's own on the shadow of device memory.
#pragma once
#include <ATen/core/Tensor.h>

#include "device.h"

namespace soft {

at::Tensor shadow_of(const at::Tensor& tensor);  // a CPU tensor over the same bytes; others as they are
void add_range(std::vector<Range>& ranges, const at::Tensor& tensor, bool write);

}  // namespace soft
