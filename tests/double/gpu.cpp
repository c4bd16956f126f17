// Tells a torch that was built without CUDA that there is one GPU, and gives pinned memory. Nothing is computed here: see
// gpu_double.py, which loads this before torch asks.

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>

namespace {

using namespace c10;

const Device GPU(DeviceType::CUDA, 0);

// One device and one stream: changing to either changes nothing.
struct Guard final : impl::DeviceGuardImplInterface {
  DeviceType type() const override { return DeviceType::CUDA; }
  Device exchangeDevice(Device) const override { return GPU; }
  Device getDevice() const override { return GPU; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device) const noexcept override { return Stream(Stream::DEFAULT, GPU); }
  Stream getDefaultStream(Device) const override { return Stream(Stream::DEFAULT, GPU); }
  Stream exchangeStream(Stream) const noexcept override { return Stream(Stream::DEFAULT, GPU); }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const Stream&, const DeviceIndex, const EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};

// Ordinary memory that remembers that it is pinned.
struct Pinned final : Allocator {
  DataPtr allocate(size_t size) override {
    void* place = std::aligned_alloc(64, (size + 127) / 64 * 64);
    std::lock_guard<std::mutex> lock(mutex());
    places().insert(place);
    return {place, place, &release, Device(DeviceType::CPU)};
  }
  DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t size) const override { std::memcpy(to, from, size); }

  static bool has(const void* place) {
    std::lock_guard<std::mutex> lock(mutex());
    return places().count(place) > 0;
  }
  static void release(void* place) {
    std::lock_guard<std::mutex> lock(mutex());
    places().erase(place);
    std::free(place);
  }
  // Never destroyed: tensors may outlive the library.
  static std::mutex& mutex() { static auto* one = new std::mutex; return *one; }
  static std::set<const void*>& places() { static auto* all = new std::set<const void*>; return *all; }
};

struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  int getNumGPUs() const override { return 1; }
  bool isPinnedPtr(const void* place) const override { return Pinned::has(place); }
  Allocator* getPinnedMemoryAllocator() const override {
    static auto* one = new Pinned;
    return one;
  }
};

}  // namespace

namespace at {
C10_REGISTER_GUARD_IMPL(CUDA, Guard)
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, Hooks)
}  // namespace at
