/* A library that registers FlashAttention-3's operator for CPU tensors, in the way of PyPI's fa3-fwd 0.0.3: with its
 * schema, through libtorch's stable interface, with functions of Python missing. Its kernel is a callback. */
#include <stdint.h>

typedef void (*kernel_t)(uint64_t *, uint64_t, uint64_t);

extern int32_t aoti_torch_library_init_def(const char *, const char *, uint32_t, void **);
extern int32_t aoti_torch_library_init_impl(const char *, const char *, const char *, uint32_t, void **);
extern int32_t aoti_torch_library_def(void *, const char *);
extern int32_t aoti_torch_library_impl(void *, const char *, kernel_t);
extern void *PyModule_Create2(void *, int);

static kernel_t kernel;

void set_kernel(kernel_t given) { kernel = given; }

void *PyInit__C(void) { return PyModule_Create2(0, 1013); }

static void call(uint64_t *stack, uint64_t arguments, uint64_t results) { kernel(stack, arguments, results); }

__attribute__((constructor)) static void register_operator(void) {
    void *definitions, *kernels;
    aoti_torch_library_init_def(NAMESPACE, __FILE__, __LINE__, &definitions);
    aoti_torch_library_def(
        definitions,
        "fwd(Tensor q,Tensor k,Tensor v,Tensor(k_new!)? k_new = None,Tensor(v_new!)? v_new = None,Tensor? q_v = None,"
        "Tensor(out!)? out = None,Tensor? cu_seqlens_q = None,Tensor? cu_seqlens_k = None,"
        "Tensor? cu_seqlens_k_new = None,Tensor? seqused_q = None,Tensor? seqused_k = None,int? max_seqlen_q = None,"
        "int? max_seqlen_k = None,Tensor? page_table = None,Tensor? kv_batch_idx = None,Tensor? leftpad_k = None,"
        "Tensor? rotary_cos = None,Tensor? rotary_sin = None,Tensor? seqlens_rotary = None,Tensor? q_descale = None,"
        "Tensor? k_descale = None,Tensor? v_descale = None,float? softmax_scale = None,bool is_causal = False,"
        "int window_size_left = -1,int window_size_right = -1,int attention_chunk = 0,float softcap = 0.0,"
        "bool is_rotary_interleaved = False,Tensor? scheduler_metadata = None,int num_splits = 0,"
        "bool? pack_gqa = None,int sm_margin = 0) -> (Tensor(out!), Tensor, Tensor, Tensor)");
    aoti_torch_library_init_impl(NAMESPACE, "CPU", __FILE__, __LINE__, &kernels);
    aoti_torch_library_impl(kernels, "fwd", call);
}
