// A row of attention [WIDTH] and the GELU (tanh form) of a row of the MLP [MLP] as one row of e4m3 with one factor: the
// input of the output projection of a single block; without attention, of an MLP's second layer; without an MLP, of the
// output projection of a double block.
//
// Rows of the inputs may be parts of longer ones; the result is dense. One block a row (grid.x) and batch item (grid.y).

struct ConstRows {
    const bf16 *data;
    long long batch, row;               // values from one to the next
};

constexpr int GELU_VECTORS = (WIDTH + MLP) / VECTOR;
constexpr int GELU_THREADS = whole_warps(GELU_VECTORS < 512 ? GELU_VECTORS : 512);
// Of a thread.
constexpr int GELU_CHUNKS = (GELU_VECTORS + GELU_THREADS - 1) / GELU_THREADS;

// x (1 + tanh(t)) / 2 = x / (1 + exp(-2t)): a third of the instructions of tanhf.
__device__ __forceinline__ float gelu(float x) {
    return __fdividef(x, 1.f + __expf(-1.5957691216057308f * fmaf(0.044715f * x * x, x, x)));
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
extern "C" __global__ void __launch_bounds__(GELU_THREADS)
gelu_concat_fp8(ConstRows attention, ConstRows mlp, e4m3 *out, float *factors) {
    __shared__ float scratch[WARP];
    const int before = attention.data ? WIDTH : 0, count = before + (mlp.data ? MLP : 0);
    const bf16 *attention_row = attention.data + blockIdx.y * attention.batch + blockIdx.x * attention.row;
    const bf16 *mlp_row = mlp.data + blockIdx.y * mlp.batch + blockIdx.x * mlp.row;
    float values[GELU_CHUNKS][VECTOR];
    float most = 0.f;
#pragma unroll
    for (int chunk = 0; chunk < GELU_CHUNKS; chunk++) {
        const int at = (chunk * GELU_THREADS + (int)threadIdx.x) * VECTOR;
        if (at >= count) continue;
        if (at < before) {
            unpack(load(attention_row + at), values[chunk]);
        } else {
            unpack(load(mlp_row + (at - before)), values[chunk]);
#pragma unroll
            for (int i = 0; i < VECTOR; i++) values[chunk][i] = gelu(values[chunk][i]);
        }
        most = largest_magnitude(values[chunk], most);
    }
    most = fmaxf(block_reduce<Max>(most, scratch, GELU_THREADS / WARP), LEAST_MAX);
    const long long row = (long long)blockIdx.y * gridDim.x + blockIdx.x;
#pragma unroll
    for (int chunk = 0; chunk < GELU_CHUNKS; chunk++) {
        const int at = (chunk * GELU_THREADS + (int)threadIdx.x) * VECTOR;
        if (at < count) store_e4m3(out + row * count + at, values[chunk], E4M3_MAX / most);
    }
    if (threadIdx.x == 0) factors[row] = most * (1.f / E4M3_MAX);
}
#endif
