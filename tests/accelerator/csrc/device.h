// What torch's parts of the device share.
#pragma once
#include <c10/core/Stream.h>

#include "model.h"

namespace soft {

constexpr auto kDevice = c10::DeviceType::PrivateUse1;

int current_device();
int current_stream(int device);  // the machine's index of this thread's current stream
int exchange_device(int device);
int exchange_stream(int index);  // returns the index before, of the same device
int index_of(c10::Stream stream);
c10::Stream stream_of(int index);
Place here();  // the Python stack; takes Python's lock, so never under the machine's

}  // namespace soft
