// libtorch functions needed for the measurements and missing in tch: allocator statistics, timed events, f32
// precision, and an account of operations. The file uses only libtorch's device-independent headers, no CUDA symbols, so that the
// program links on a machine without CUDA. Each function returns an error text or null; the text is
// thread-local and valid until the thread's next call.

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/record_function.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

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

// An account of the operations that a thread calls: those that compute and call no other that does.
struct Account {
  int64_t products = 0;
  int64_t others = 0;
  int64_t other_bytes = 0;  // read and written by the others
  int64_t flops = 0;        // of the products: two for each multiplication
};

struct Frame : at::ObserverContext {
  bool inner = false;  // an operation within it was counted
  bool product = false;
  bool whole = false;  // one operation, whatever it calls
  int64_t read = 0;
  int64_t flops = 0;
};

thread_local Account account;
thread_local std::vector<Frame*> frames;
thread_local at::CallbackHandle counting = 0;

bool is_one_of(const std::string& name, std::initializer_list<const char*> all) {
  return std::any_of(all.begin(), all.end(), [&](const char* other) { return name == other; });
}

bool computes(const std::string& name) {
  return !is_one_of(name, {"aten::empty", "aten::empty_strided", "aten::empty_like", "aten::as_strided", "aten::view",
      "aten::reshape", "aten::_reshape_alias", "aten::_unsafe_view", "aten::transpose", "aten::t", "aten::permute",
      "aten::select", "aten::slice", "aten::narrow", "aten::unsqueeze", "aten::squeeze", "aten::expand",
      "aten::unflatten", "aten::flatten", "aten::detach", "aten::alias", "aten::split", "aten::split_with_sizes",
      "aten::chunk", "aten::unbind", "aten::view_as_complex", "aten::view_as_real", "aten::contiguous", "aten::to",
      "aten::is_nonzero", "aten::item", "aten::_local_scalar_dense", "aten::lift_fresh", "aten::resize_",
      "aten::result_type", "aten::expand_as", "aten::view_as", "aten::movedim", "aten::numpy_T", "aten::set_"});
}

bool is_product(const std::string& name) {
  return name.find("mm") != std::string::npos || name.find("linear") != std::string::npos ||
      name.find("matmul") != std::string::npos || name.find("attention") != std::string::npos;
}

// The floating-point operations of a product or an attention, from its tensors: the factors are the last two inputs of a
// product that adds to its first, and the first two of the others.
int64_t flops_of(const std::string& name, c10::ArrayRef<const c10::IValue> inputs) {
  std::vector<at::Tensor> tensors;
  for (const auto& value : inputs) {
    if (value.isTensor() && value.toTensor().defined()) tensors.push_back(value.toTensor());
  }
  if (tensors.size() < 2) return 0;
  if (name.find("attention") != std::string::npos) {
    // Queries [N, H, Q, D] and keys [N, H, K, D]: scores, and their sums of values.
    const auto &q = tensors.at(0), &k = tensors.at(1);
    return 4 * q.numel() * k.size(-2);
  }
  const bool adds = name.find("add") != std::string::npos && tensors.size() > 2;
  const auto &a = tensors.at(adds ? 1 : 0), &b = tensors.at(adds ? 2 : 1);
  // A linear layer's weight has its outputs first.
  const int64_t columns = name.find("linear") != std::string::npos ? b.size(0) : b.size(-1);
  return 2 * a.numel() * columns;
}

int64_t bytes_of(const at::Tensor& tensor) {
  if (!tensor.defined()) return 0;
  int64_t bytes = tensor.element_size();
  for (int64_t axis = 0; axis < tensor.dim(); ++axis) {
    if (tensor.stride(axis) != 0) bytes *= tensor.size(axis);  // a repeated axis is in memory once
  }
  return bytes;
}

int64_t bytes_of(c10::ArrayRef<const c10::IValue> values, size_t from) {
  int64_t bytes = 0;
  for (size_t index = from; index < values.size(); ++index) {
    const auto& value = values[index];
    if (value.isTensor()) bytes += bytes_of(value.toTensor());
    if (value.isTensorList()) {
      for (const at::Tensor& tensor : value.toTensorVector()) bytes += bytes_of(tensor);
    }
  }
  return bytes;
}

bool within_whole() {
  return !frames.empty() && frames.back()->whole;
}

std::unique_ptr<at::ObserverContext> entered(const at::RecordFunction& function) {
  auto frame = std::make_unique<Frame>();
  // What a product or an attention calls is a part of it; a norm of the RMS is one kernel on CUDA.
  frame->product = is_product(function.name());
  frame->whole = within_whole() || frame->product || is_one_of(function.name(), {"aten::rms_norm"});
  // A copy does not read its destination, which comes first.
  const bool copies = is_one_of(function.name(), {"aten::copy_", "aten::fill_", "aten::zero_"});
  frame->read = bytes_of(function.inputs(), copies ? 1 : 0);
  if (frame->product) frame->flops = flops_of(function.name(), function.inputs());
  frames.push_back(frame.get());
  return frame;
}

void left(const at::RecordFunction& function, at::ObserverContext* context) {
  if (context == nullptr) return;  // of a call that began before the count
  const bool inner = static_cast<Frame*>(context)->inner;
  const bool product = static_cast<Frame*>(context)->product;
  const bool whole = static_cast<Frame*>(context)->whole;
  const int64_t read = static_cast<Frame*>(context)->read;
  frames.pop_back();
  if (within_whole() || (!whole && !inner && !computes(function.name()))) return;
  if (product) {
    ++account.products;
    account.flops += static_cast<Frame*>(context)->flops;
  } else if (whole || !inner) {
    ++account.others;
    const auto& outputs = function.outputs();
    account.other_bytes += read + bytes_of(c10::ArrayRef<const c10::IValue>(outputs.data(), outputs.size()), 0);
  }
  if (!frames.empty()) frames.back()->inner = true;
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

// Begins to count the operations of this thread.
const char* kit_count_begin() {
  return guarded([&] {
    account = Account();
    auto callback = at::RecordFunctionCallback(entered, left).needsInputs(true).needsOutputs(true);
    counting = at::addThreadLocalCallback(callback.scopes({at::RecordScope::FUNCTION}));
  });
}

// Ends the count. Writes four numbers: of matrix products and attentions, of other operations that compute, of bytes
// that the others read and write, and of the products' floating-point operations.
const char* kit_count_end(int64_t* out) {
  return guarded([&] {
    at::removeCallback(counting);
    out[0] = account.products;
    out[1] = account.others;
    out[2] = account.other_bytes;
    out[3] = account.flops;
  });
}
}
