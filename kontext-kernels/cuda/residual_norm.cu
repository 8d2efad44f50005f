// x += gate * y where there is a branch y, in place; then the layer norm of x, times 1 + scale, plus shift: in bf16, or
// in e4m3 with one factor a row.
//
// x and y are [batch, rows, WIDTH] with any distance of rows and items; the result is dense. The first `text` rows take
// the text's vectors, the others the image's. One block a row (grid.x) and batch item (grid.y).

struct Rows {
    bf16 *data;
    long long batch, row;               // values from one to the next
};

// A vector of WIDTH for text and image, and the values from one batch item's to the next.
struct TwoVectors {
    const bf16 *text, *image;
    long long text_batch, image_batch;
};

constexpr int NORM_THREADS = whole_warps(WIDTH / VECTOR);
constexpr int NORM_WARPS = NORM_THREADS / WARP;

// Known at compile time where a row fills its warps, so that no branch is left.
__device__ __forceinline__ bool is_in_row(int at) { return WIDTH / VECTOR == NORM_THREADS || at < WIDTH; }

__device__ __forceinline__ void load_vector(const TwoVectors &vectors, bool is_text, int at, float (&values)[VECTOR]) {
    const bf16 *from = is_text ? vectors.text + blockIdx.y * vectors.text_batch
                               : vectors.image + blockIdx.y * vectors.image_batch;
    unpack(load(from + at), values);
}

// Returns the normed values in `values`, zeros in threads after the row's end. `scratch` has two warps of places.
__device__ __forceinline__ void add_and_norm(const Rows &x, const Rows &y, const TwoVectors &gate,
                                             const TwoVectors &scale, const TwoVectors &shift, int text, float eps,
                                             float *scratch, float (&values)[VECTOR]) {
    const int at = threadIdx.x * VECTOR;
    const bool is_text = (int)blockIdx.x < text, in_row = is_in_row(at);
    const Bf16x8 zeros = make_uint4(0, 0, 0, 0);
    bf16 *x_at = x.data + blockIdx.y * x.batch + blockIdx.x * x.row + at;
    unpack(in_row ? load(x_at) : zeros, values);
    if (y.data && in_row) {
        float branch[VECTOR], gates[VECTOR];
        unpack(load(y.data + blockIdx.y * y.batch + blockIdx.x * y.row + at), branch);
        load_vector(gate, is_text, at, gates);
#pragma unroll
        for (int i = 0; i < VECTOR; i++) values[i] = fmaf(gates[i], branch[i], values[i]);
        const Bf16x8 sum = pack(values);
        store(x_at, sum);
        unpack(sum, values);            // the rounded sum is normed, as the next reader of x finds it
    }

    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < VECTOR; i++) sum += values[i];
    const float mean = block_reduce<Sum>(sum, scratch, NORM_WARPS) * (1.f / WIDTH);
    // Deviations instead of squares, whose sum loses the variance of values far from zero.
    float squares = 0.f;
#pragma unroll
    for (int i = 0; i < VECTOR; i++) {
        values[i] = in_row ? values[i] - mean : 0.f;
        squares = fmaf(values[i], values[i], squares);
    }
    const float variance = block_reduce<Sum>(squares, scratch + WARP, NORM_WARPS) * (1.f / WIDTH);
    if (!in_row) return;
    const float inverse = rsqrtf(variance + eps);
    float scales[VECTOR], shifts[VECTOR];
    load_vector(scale, is_text, at, scales);
    load_vector(shift, is_text, at, shifts);
#pragma unroll
    for (int i = 0; i < VECTOR; i++) values[i] = fmaf(values[i] * inverse, 1.f + scales[i], shifts[i]);
}

extern "C" __global__ void __launch_bounds__(NORM_THREADS)
residual_norm(Rows x, Rows y, TwoVectors gate, TwoVectors scale, TwoVectors shift, bf16 *out, int text, float eps) {
    __shared__ float scratch[2 * WARP];
    float values[VECTOR];
    add_and_norm(x, y, gate, scale, shift, text, eps, scratch, values);
    const int at = threadIdx.x * VECTOR;
    const long long row = (long long)blockIdx.y * gridDim.x + blockIdx.x;
    if (is_in_row(at)) store(out + row * WIDTH + at, pack(values));
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
extern "C" __global__ void __launch_bounds__(NORM_THREADS)
residual_norm_fp8(Rows x, Rows y, TwoVectors gate, TwoVectors scale, TwoVectors shift, e4m3 *out, float *factors,
                  int text, float eps) {
    __shared__ float scratch[3 * WARP];
    float values[VECTOR];
    add_and_norm(x, y, gate, scale, shift, text, eps, scratch, values);
    const float most =
        fmaxf(block_reduce<Max>(largest_magnitude(values, 0.f), scratch + 2 * WARP, NORM_WARPS), LEAST_MAX);
    const int at = threadIdx.x * VECTOR;
    const long long row = (long long)blockIdx.y * gridDim.x + blockIdx.x;
    if (is_in_row(at)) store_e4m3(out + row * WIDTH + at, values, E4M3_MAX / most);
    if (threadIdx.x == 0) factors[row] = most * (1.f / E4M3_MAX);
}
#endif
