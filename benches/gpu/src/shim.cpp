// libtorch functions needed for the measurements and missing in tch: allocator statistics, timed events, and
// f32 precision. The file uses only libtorch's device-independent headers, no CUDA symbols, so that the
// program links on a machine without CUDA. Each function returns an error text or null; the text is
// thread-local and valid until the thread's next call.

#include <ATen/Context.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <cstdint>
#include <string>

namespace {

template <typename F>
const char* guarded(F&& f) {
  thread_local std::string error;
  try {
    f();
    return nullptr;
  } catch (const std::exception& e) {
    error = e.what();
  } catch (...) {
    error = "an unknown exception";
  }
  return error.c_str();
}

c10::Stream current_stream(int8_t index) {
  return c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).getStream(c10::Device(c10::DeviceType::CUDA, index));
}

c10::DeviceAllocator& allocator() {
  return *c10::getDeviceAllocator(c10::DeviceType::CUDA);
}

}  // namespace

extern "C" {

const char* kit_set_tf32(bool convolutions, bool products) {
  return guarded([&] {
    at::globalContext().setAllowTF32CuDNN(convolutions);
    at::globalContext().setAllowTF32CuBLAS(products);
  });
}

const char* kit_tf32(bool* convolutions, bool* products) {
  return guarded([&] {
    *convolutions = at::globalContext().allowTF32CuDNN();
    *products = at::globalContext().allowTF32CuBLAS();
  });
}

// Writes three numbers of bytes: currently allocated to tensors, their peak, and the peak reserved on the
// device.
const char* kit_memory(int8_t index, int64_t* out) {
  return guarded([&] {
    const auto stats = allocator().getDeviceStats(index);
    const auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    out[0] = stats.allocated_bytes[all].current;
    out[1] = stats.allocated_bytes[all].peak;
    out[2] = stats.reserved_bytes[all].peak;
  });
}

const char* kit_reset_peak(int8_t index) {
  return guarded([&] { allocator().resetPeakStats(index); });
}

const char* kit_empty_cache() {
  return guarded([&] { allocator().emptyCache(); });
}

const char* kit_synchronize(int8_t index) {
  return guarded([&] { c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).synchronizeDevice(index); });
}

const char* kit_event_new(void** event) {
  return guarded([&] { *event = new c10::Event(c10::DeviceType::CUDA, c10::EventFlag::BACKEND_DEFAULT); });
}

void kit_event_delete(void* event) {
  delete static_cast<c10::Event*>(event);
}

const char* kit_event_record(int8_t index, void* event) {
  return guarded([&] { static_cast<c10::Event*>(event)->record(current_stream(index)); });
}

// Writes the milliseconds between two events; waits for the second.
const char* kit_event_elapsed(void* begin, void* end, double* milliseconds) {
  return guarded([&] {
    static_cast<c10::Event*>(end)->synchronize();
    *milliseconds = static_cast<c10::Event*>(begin)->elapsedTime(*static_cast<c10::Event*>(end));
  });
}
}
