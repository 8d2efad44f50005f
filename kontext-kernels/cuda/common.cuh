// The shared part of all kernels. No header is included, so that NVRTC needs no folder of headers, and a C++ compiler
// compiles the same text for a CPU.
//
// All kernels are bound by memory: a thread moves 16 bytes at once, a row stays in registers, sums are in f32.
// Compile-time sizes: WIDTH of a token, HEAD of an attention head, MLP of a block's hidden layer.

typedef unsigned short bf16;        // the bits of a bfloat16
typedef unsigned char e4m3;         // the bits of a float8_e4m3fn
typedef uint4 Bf16x8;               // eight values; a built-in vector, so that it moves as 16 bytes

constexpr int VECTOR = 8;           // values of a thread
constexpr int WARP = 32;
constexpr float E4M3_MAX = 448.f;
// The factor of a row of zeros is that of this maximum, so that no division is by zero.
constexpr float LEAST_MAX = 1e-12f;

// The smallest multiple of a warp: a shuffle needs all threads of its warp.
__device__ constexpr int whole_warps(int threads) { return (threads + WARP - 1) / WARP * WARP; }

__device__ __forceinline__ float low_half(unsigned int pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_half(unsigned int pair) { return __uint_as_float(pair & 0xffff0000u); }

__device__ __forceinline__ unsigned int to_bf16x2(float low, float high) {
#ifdef __CUDA_ARCH__
    unsigned int pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#else
    return host_bf16x2(low, high);
#endif
}

// Saturating. Exists from sm_89 on; the kernels that call it are left out before.
__device__ __forceinline__ unsigned int to_e4m3x4(float a, float b, float c, float d) {
#ifdef __CUDA_ARCH__
    unsigned short low, high;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(b), "f"(a));
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(d), "f"(c));
    return (unsigned int)low | ((unsigned int)high << 16);
#else
    return host_e4m3x4(a, b, c, d);
#endif
}

__device__ __forceinline__ void unpack(const Bf16x8 &packed, float (&values)[VECTOR]) {
    values[0] = low_half(packed.x); values[1] = high_half(packed.x);
    values[2] = low_half(packed.y); values[3] = high_half(packed.y);
    values[4] = low_half(packed.z); values[5] = high_half(packed.z);
    values[6] = low_half(packed.w); values[7] = high_half(packed.w);
}

__device__ __forceinline__ Bf16x8 pack(const float (&values)[VECTOR]) {
    return make_uint4(to_bf16x2(values[0], values[1]), to_bf16x2(values[2], values[3]),
                      to_bf16x2(values[4], values[5]), to_bf16x2(values[6], values[7]));
}

__device__ __forceinline__ Bf16x8 load(const bf16 *from) { return *reinterpret_cast<const Bf16x8 *>(from); }

__device__ __forceinline__ void load_f32(const float *from, float (&values)[VECTOR]) {
    const float4 low = reinterpret_cast<const float4 *>(from)[0], high = reinterpret_cast<const float4 *>(from)[1];
    values[0] = low.x; values[1] = low.y; values[2] = low.z; values[3] = low.w;
    values[4] = high.x; values[5] = high.y; values[6] = high.z; values[7] = high.w;
}

// By name: of an assignment after a branch, NVRTC 13.0 makes four stores of 4 bytes.
__device__ __forceinline__ void store(bf16 *to, const Bf16x8 &packed) {
#ifdef __CUDA_ARCH__
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
                 ::"l"(to), "r"(packed.x), "r"(packed.y), "r"(packed.z), "r"(packed.w) : "memory");
#else
    *reinterpret_cast<Bf16x8 *>(to) = packed;
#endif
}

__device__ __forceinline__ void store_e4m3(e4m3 *to, const float (&values)[VECTOR], float factor) {
    const unsigned int low =
        to_e4m3x4(values[0] * factor, values[1] * factor, values[2] * factor, values[3] * factor);
    const unsigned int high =
        to_e4m3x4(values[4] * factor, values[5] * factor, values[6] * factor, values[7] * factor);
#ifdef __CUDA_ARCH__
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(low), "r"(high) : "memory");
#else
    *reinterpret_cast<uint2 *>(to) = make_uint2(low, high);
#endif
}

__device__ __forceinline__ float largest_magnitude(const float (&values)[VECTOR], float so_far) {
#pragma unroll
    for (int i = 0; i < VECTOR; i++) so_far = fmaxf(so_far, fabsf(values[i]));
    return so_far;
}

struct Sum {
    static __device__ __forceinline__ float of(float a, float b) { return a + b; }
};
struct Max {
    static __device__ __forceinline__ float of(float a, float b) { return fmaxf(a, b); }
};

template <class Operation> __device__ __forceinline__ float warp_reduce(float value) {
#pragma unroll
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2)
        value = Operation::of(value, __shfl_xor_sync(0xffffffffu, value, lanes));
    return value;
}

// Reduces over a block of at most 32 whole warps; each thread has the result. Of Max, the values are not negative.
// `scratch` is one warp of places. It may be used again after the next barrier only, so each call has its own.
template <class Operation>
__device__ __forceinline__ float block_reduce(float value, float *scratch, int warps) {
    value = warp_reduce<Operation>(value);
    if (warps == 1) return value;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    if (lane == 0) scratch[warp] = value;
    __syncthreads();
    return warp_reduce<Operation>(lane < warps ? scratch[lane] : 0.f);
}
