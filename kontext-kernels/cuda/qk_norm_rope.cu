// Queries and keys of all heads: RMS norm over the head, times its weight, turned by the token's angles, in place.
//
// `qkv` has rows of q, k, v and anything after them; a row starts every `row` values, a batch item every `batch`.
// `rope` [tokens, HEAD] is cosine and sine in turns, one pair for two values. The first `text` tokens take the weights
// of the text. In place is safe, because a thread reads all that it writes before it writes.
// One block a token (grid.x) and batch item (grid.y); HEAD / 8 threads a head.

struct QkWeights {
    const float *text_q, *text_k, *image_q, *image_k;   // [HEAD]
};

constexpr int HEAD_THREADS = HEAD / VECTOR;
constexpr int QK_THREADS = whole_warps(WIDTH / VECTOR);

__device__ __forceinline__ void norm_and_turn(float (&x)[VECTOR], const float (&weight)[VECTOR],
                                              const float (&turn)[VECTOR], float eps) {
    float squares = 0.f;
#pragma unroll
    for (int i = 0; i < VECTOR; i++) squares = fmaf(x[i], x[i], squares);
#pragma unroll
    for (int lanes = HEAD_THREADS / 2; lanes > 0; lanes /= 2) squares += __shfl_xor_sync(0xffffffffu, squares, lanes);
    const float scale = rsqrtf(squares * (1.f / HEAD) + eps);
#pragma unroll
    for (int i = 0; i < VECTOR; i += 2) {
        const float a = x[i] * scale * weight[i], b = x[i + 1] * scale * weight[i + 1];
        const float cosine = turn[i], sine = turn[i + 1];
        x[i] = a * cosine - b * sine;
        x[i + 1] = b * cosine + a * sine;
    }
}

extern "C" __global__ void __launch_bounds__(QK_THREADS)
qk_norm_rope(bf16 *qkv, long long batch, long long row, QkWeights weights, const float *rope, int heads, int text,
             float eps) {
    const int token = blockIdx.x, head = threadIdx.x / HEAD_THREADS, at = threadIdx.x % HEAD_THREADS * VECTOR;
    const bool is_text = token < text;
    float turn[VECTOR], weight_q[VECTOR], weight_k[VECTOR];
    load_f32(rope + (long long)token * HEAD + at, turn);
    load_f32((is_text ? weights.text_q : weights.image_q) + at, weight_q);
    load_f32((is_text ? weights.text_k : weights.image_k) + at, weight_k);

    bf16 *q_at = qkv + blockIdx.y * batch + token * row + head * HEAD + at, *k_at = q_at + heads * HEAD;
    const bool is_head = head < heads;      // threads after the last head only take part in the shuffles
    const Bf16x8 zeros = make_uint4(0, 0, 0, 0);
    float q[VECTOR], k[VECTOR];
    unpack(is_head ? load(q_at) : zeros, q);
    unpack(is_head ? load(k_at) : zeros, k);
    norm_and_turn(q, weight_q, turn, eps);
    norm_and_turn(k, weight_k, turn, eps);
    if (is_head) {
        store(q_at, pack(q));
        store(k_at, pack(k));
    }
}
