// CUDA's words for a C++ compiler: the kernels' own text runs on a CPU, each of its threads as a fiber.
//
// The file that includes this and the text is compiled with -fsanitize=thread,alignment, whose hooks machine.cpp
// defines: so every access of a kernel is checked there.
// Not seen: inline PTX, the roundings of a device's own approximations (rsqrtf, __expf), resources, speed.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
// One section has all shared memory, so that it can be filled with NaNs before each block.
#define __shared__ static __attribute__((section("emulated_shared")))

struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned int x, y; };
struct alignas(16) uint4 { unsigned int x, y, z, w; };
inline uint2 make_uint2(unsigned int x, unsigned int y) { return {x, y}; }
inline uint4 make_uint4(unsigned int x, unsigned int y, unsigned int z, unsigned int w) { return {x, y, z, w}; }

struct EmulatedIndex { unsigned int x, y, z; };
struct EmulatedPlace { EmulatedIndex thread, block, grid; };
extern "C" EmulatedPlace emulated_place;
#define threadIdx emulated_place.thread
#define blockIdx emulated_place.block
#define gridDim emulated_place.grid

extern "C" void emulated_barrier();
extern "C" uint64_t emulated_shuffle(unsigned int mask, uint64_t value, int source);

inline void __syncthreads() { emulated_barrier(); }
template <class T> inline T __shfl_xor_sync(unsigned int mask, T value, int lanes) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a shuffle moves 4 or 8 bytes");
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = emulated_shuffle(mask, bits, (int)(threadIdx.x % 32) ^ lanes);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

inline float __uint_as_float(unsigned int bits) {
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}
inline unsigned int host_bits(float value) {
    unsigned int bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return bits;
}
inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline int min(int a, int b) { return a < b ? a : b; }

// To nearest, ties to even; NaN stays one.
inline unsigned int host_bf16(float value) {
    const unsigned int bits = host_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}
inline unsigned int host_bf16x2(float low, float high) { return host_bf16(low) | (host_bf16(high) << 16); }

// To nearest, ties to even, saturating at 448; NaN stays one.
inline unsigned int host_e4m3(float value) {
    const unsigned int sign = (host_bits(value) >> 24) & 0x80u;
    const float magnitude = std::fabs(value);
    if (magnitude != magnitude) return sign | 0x7fu;
    if (magnitude >= 448.f) return sign | 0x7eu;
    const int exponent = magnitude < 0x1p-6f ? -6 : std::ilogb(magnitude);
    // In steps of the last place; the 16th carries into the next exponent.
    const unsigned int steps = (unsigned int)std::nearbyint(std::ldexp(magnitude, 3 - exponent));
    return sign | (steps + (unsigned int)((exponent + 6) * 8));
}
inline unsigned int host_e4m3x4(float a, float b, float c, float d) {
    return host_e4m3(a) | host_e4m3(b) << 8 | host_e4m3(c) << 16 | host_e4m3(d) << 24;
}

// A kernel takes its arguments as cudaLaunchKernel does: as pointers to their values.
struct EmulatedKernel {
    const char *name;
    void (*call)(void **arguments);
};
template <class... A, std::size_t... I>
__attribute__((no_sanitize_thread)) void emulated_call(void (*kernel)(A...), void **arguments,
                                                       std::index_sequence<I...>) {
    kernel(*reinterpret_cast<std::remove_cv_t<A> *>(arguments[I])...);
}
template <class... A> void emulated_unpack(void (*kernel)(A...), void **arguments) {
    emulated_call(kernel, arguments, std::index_sequence_for<A...>{});
}
#define EMULATED(name, kernel) {name, [](void **arguments) { emulated_unpack(kernel, arguments); }}
