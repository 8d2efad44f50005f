// Group norm and SiLU of pictures [batch, pixels, channels], in two launches: sums of slabs of pixels, then the result.
//
// `sums` [batch, slabs, groups, 2] has one place for each slab, so that they are added in the same order each time.
// A block is [pixels next to each other] x [vectors of 8 channels]; threads after the last whole pixel have no part.
// One block a slab (grid.x) and batch item (grid.y). At most 2048 channels and 128 groups.

constexpr int GROUP_THREADS = 256;
constexpr int MOST_GROUPS = GROUP_THREADS / 2;

// The part of a thread in a picture: its vector of channels, and the pixels first, first + step, .. of a slab.
struct GroupPart {
    int channel, first, step;
    bool has_pixels;
};

__device__ __forceinline__ GroupPart group_part(int channels) {
    const int vectors = channels / VECTOR, step = GROUP_THREADS / vectors;
    const int first = threadIdx.x / vectors;
    return {(int)(threadIdx.x % vectors) * VECTOR, first, step, first < step};
}

extern "C" __global__ void __launch_bounds__(GROUP_THREADS)
group_sums(const bf16 *x, float *sums, int channels, int groups, int pixels, int slab) {
    // By place in the vector, so that neighbouring threads write neighbouring words.
    __shared__ float thread_sums[VECTOR][GROUP_THREADS], thread_squares[VECTOR][GROUP_THREADS];
    __shared__ float share_sums[GROUP_THREADS];
    const GroupPart part = group_part(channels);
    const int begin = blockIdx.x * slab, end = min(begin + slab, pixels);
    float sum[VECTOR], square[VECTOR];
#pragma unroll
    for (int i = 0; i < VECTOR; i++) sum[i] = square[i] = 0.f;
    if (part.has_pixels) {
        const bf16 *picture = x + (long long)blockIdx.y * pixels * channels + part.channel;
#pragma unroll 4
        for (int pixel = begin + part.first; pixel < end; pixel += part.step) {
            float values[VECTOR];
            unpack(load(picture + (long long)pixel * channels), values);
#pragma unroll
            for (int i = 0; i < VECTOR; i++) {
                sum[i] += values[i];
                square[i] = fmaf(values[i], values[i], square[i]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < VECTOR; i++) {
        thread_sums[i][threadIdx.x] = sum[i];
        thread_squares[i][threadIdx.x] = square[i];
    }
    __syncthreads();

    // `shares` threads add up each moment of a group, then one of them adds up the shares.
    const int shares = GROUP_THREADS / (2 * groups), which = threadIdx.x / shares, share = threadIdx.x % shares;
    const int group = which / 2, width = channels / groups;
    float total = 0.f;
    if (group < groups) {
        const bool is_square = which % 2;
        for (int index = share; index < width * part.step; index += shares) {
            const int channel = group * width + index % width;
            const int thread = index / width * (channels / VECTOR) + channel / VECTOR;
            total += (is_square ? thread_squares : thread_sums)[channel % VECTOR][thread];
        }
    }
    share_sums[threadIdx.x] = total;
    __syncthreads();
    if (group < groups && share == 0) {
        for (int other = 1; other < shares; other++) total += share_sums[threadIdx.x + other];
        sums[((long long)blockIdx.y * gridDim.x + blockIdx.x) * 2 * groups + which] = total;
    }
}

// `slab` pixels a block here are those of this launch, `slabs` those that `sums` has.
extern "C" __global__ void __launch_bounds__(GROUP_THREADS)
group_norm(const bf16 *x, const float *sums, const float *weight, const float *bias, bf16 *out, int channels,
           int groups, int pixels, int slab, int slabs, float eps, int silu) {
    __shared__ double share_sums[GROUP_THREADS];
    __shared__ float means[MOST_GROUPS], inverses[MOST_GROUPS];
    const int shares = GROUP_THREADS / (2 * groups), which = threadIdx.x / shares, share = threadIdx.x % shares;
    const int group = which / 2;
    double total = 0.0;
    if (group < groups) {
        const float *first = sums + (long long)blockIdx.y * slabs * 2 * groups + which;
        for (int index = share; index < slabs; index += shares) total += first[(long long)index * 2 * groups];
    }
    share_sums[threadIdx.x] = total;
    __syncthreads();
    if ((int)threadIdx.x < groups) {
        double sum = 0.0, square = 0.0;
        const int at = threadIdx.x * 2 * shares;
        for (int other = 0; other < shares; other++) {
            sum += share_sums[at + other];
            square += share_sums[at + shares + other];
        }
        // E[x²] - E[x]² in f64: the difference of near numbers.
        const double share_of_one = 1.0 / ((double)pixels * (channels / groups)), mean = sum * share_of_one;
        means[threadIdx.x] = (float)mean;
        inverses[threadIdx.x] = rsqrtf(fmaxf((float)(square * share_of_one - mean * mean), 0.f) + eps);
    }
    __syncthreads();

    const GroupPart part = group_part(channels);
    if (!part.has_pixels) return;
    const int width = channels / groups;
    float factor[VECTOR], offset[VECTOR];
#pragma unroll
    for (int i = 0; i < VECTOR; i++) {
        const int channel = part.channel + i, of_group = channel / width;
        factor[i] = weight[channel] * inverses[of_group];
        offset[i] = fmaf(-means[of_group], factor[i], bias[channel]);
    }
    const int begin = blockIdx.x * slab, end = min(begin + slab, pixels);
    const long long picture = (long long)blockIdx.y * pixels * channels + part.channel;
    for (int pixel = begin + part.first; pixel < end; pixel += part.step) {
        const long long at = picture + (long long)pixel * channels;
        float values[VECTOR];
        unpack(load(x + at), values);
#pragma unroll
        for (int i = 0; i < VECTOR; i++) {
            const float y = fmaf(values[i], factor[i], offset[i]);
            values[i] = silu ? __fdividef(y, 1.f + __expf(-y)) : y;
        }
        store(out + at, pack(values));
    }
}
