"""Times one step of FLUX.1 Kontext in diffusers, in its usual settings, and the parts around the step.

    python benches/gpu/opponents.py [--fa3 DIR] [--budget 240] [--only NAME,NAME] [--skip NAME,NAME] [--cpu]

Requires torch, diffusers and, for the text encoders, transformers. Standard output has a row for each
measurement, see `measure.py`; `--cpu` tests the program itself, with a tiny model. The transformer has
FLUX.1's full size in bf16, with random weights drawn on the device; batch size 1. Rows are named CASE/VARIANT.
The variants of a step:

    eager                          the pipeline's defaults
    eager, flash attention         with libtorch's flash attention instead of its default choice
    fused QKV                      eager, after `fuse_qkv_projections`
    compiled                       after `compile_repeated_blocks(fullgraph=True)`
    fp8 rowwise, compiled          linear layers of all blocks in e4m3, a scale per weight row and per token
    fp8 rowwise, FA3 fp8, compiled the same, with FlashAttention 3 on e4m3 without scales, as in flux-fast

`relative_l2` is a variant's distance from eager on the same input; with random weights it shows rounding, not
the loss in image quality. `first_s` is the first call, including compilation. A LoRA's training step has rank
16 on all linear layers of the blocks except those of modulation, the edit's tokens, a loss over the target's
tokens, and f32 adapters that compute in bf16.
"""

import contextlib
import functools
import importlib.metadata
import os
import sys
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import measure
from measure import Measurement, relative_l2, timed

ITERATIONS, WARMUP = 7, 2
TRAINING_ITERATIONS, TRAINING_WARMUP = 3, 1
LORA_RANK = 16


@dataclass
class Case:
    """Tokens of a step: text, and squares of `side` patches for the target and, in an edit, the reference."""

    text: int
    side: int
    images: int

    @property
    def target(self):
        return self.side**2


@dataclass
class Sizes:
    """Configurations of the measured models, and the cases."""

    cases: dict
    transformer: dict
    vae: dict
    t5: dict
    clip: dict
    pixels: int
    t5_tokens: int
    clip_tokens: int


FULL = Sizes(
    cases={"edit 1024": Case(512, 64, 2), "edit 512": Case(512, 32, 2), "t2i 1024": Case(512, 64, 1)},
    transformer={
        "patch_size": 1,
        "in_channels": 64,
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": True,
        "axes_dims_rope": (16, 56, 56),
    },
    vae={
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "latent_channels": 16,
        "norm_num_groups": 32,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "mid_block_add_attention": True,
    },
    t5={
        "vocab_size": 32128,
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
    },
    clip={
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
    },
    pixels=1024,
    t5_tokens=512,
    clip_tokens=77,
)
TINY = Sizes(
    cases={"edit 1024": Case(8, 6, 2), "edit 512": Case(8, 4, 2), "t2i 1024": Case(8, 6, 1)},
    transformer=FULL.transformer
    | {
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 24,
        "axes_dims_rope": (4, 6, 6),
    },
    vae=FULL.vae | {"block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4},
    t5=FULL.t5 | {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
    clip=FULL.clip
    | {
        "vocab_size": 99,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "bos_token_id": 0,
        "eos_token_id": 98,
    },
    pixels=64,
    t5_tokens=16,
    clip_tokens=77,
)


# diffusers


@functools.cache
def prepare_diffusers():
    """Prepares the import of diffusers without its dependencies, and without PEFT, which is not needed.

    Importing PEFT takes seconds, and it may be incompatible with the version of transformers.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import importlib_metadata  # noqa: F401
    except ImportError:
        sys.modules["importlib_metadata"] = importlib.metadata
    import diffusers.utils
    import diffusers.utils.import_utils

    diffusers.utils.import_utils._peft_available = False
    diffusers.utils.USE_PEFT_BACKEND = False


def transformer_module():
    prepare_diffusers()
    from diffusers.models.transformers import transformer_flux

    return transformer_flux


def build_transformer(config, device):
    """Builds a transformer with random weights, the same in each call."""
    with torch.device("meta"):
        model = transformer_module().FluxTransformer2DModel(**config)
    model = model.to(torch.bfloat16).to_empty(device=device).eval().requires_grad_(False)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            parameter.normal_(0, parameter.shape[1] ** -0.5)
        elif name.endswith("weight"):
            parameter.fill_(1.0)
        else:
            parameter.normal_(0, 0.02)
    return model


def step_inputs(case, config, device):
    """Draws the transformer's inputs for one step, as from the pipeline; the same in each call."""
    torch.manual_seed(1)

    def random(*shape):
        return torch.randn(*shape, device=device).bfloat16()

    return {
        "hidden_states": random(1, case.images * case.target, config["in_channels"]),
        "encoder_hidden_states": random(1, case.text, config["joint_attention_dim"]),
        "pooled_projections": random(1, config["pooled_projection_dim"]),
        "timestep": torch.full((1,), 0.5, device=device, dtype=torch.bfloat16),
        "guidance": torch.full((1,), 2.5, device=device),
        "img_ids": torch.cat([positions(image, case.side, device) for image in range(case.images)]),
        "txt_ids": torch.zeros(case.text, 3, device=device),
        "return_dict": False,
    }


def positions(image, side, device):
    """Returns the positions (image, y, x) of the tokens of a square of patches, [side * side, 3]."""
    rows, columns = torch.meshgrid(*[torch.arange(side, device=device)] * 2, indexing="ij")
    return torch.stack([torch.full_like(rows, image), rows, columns], -1).reshape(-1, 3).float()


def replace_linears(model, replacement):
    """Replaces the linear layers of all blocks except those of modulation, which process a single row."""
    for block in [*model.transformer_blocks, *model.single_transformer_blocks]:
        for name, linear in list(block.named_modules()):
            if isinstance(linear, nn.Linear) and "norm" not in name:
                parent, _, attribute = name.rpartition(".")
                setattr(block.get_submodule(parent), attribute, replacement(linear))
    return model


class E4m3Linear(nn.Module):
    """A linear layer in e4m3, with a scale per weight row and a dynamic scale per token."""

    def __init__(self, linear):
        super().__init__()
        weight, factors = measure.to_e4m3(linear.weight.data, each_row=True)
        self.register_buffer("weight", weight)
        self.register_buffer("factors", factors.t().contiguous())
        self.register_buffer("bias", linear.bias.data)

    def forward(self, x):
        rows, factors = measure.to_e4m3(x.reshape(-1, x.shape[-1]), each_row=True)
        result = measure.e4m3_linear(rows, self.weight, factors, self.factors, self.bias)
        return result.reshape(*x.shape[:-1], result.shape[-1])


class LoraLinear(nn.Module):
    """A frozen linear layer and a low-rank f32 adapter that computes in the input's dtype, as in autocast."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear
        outputs, inputs = linear.weight.shape
        self.down = nn.Parameter(torch.randn(LORA_RANK, inputs, device=linear.weight.device) / LORA_RANK)
        self.up = nn.Parameter(torch.zeros(outputs, LORA_RANK, device=linear.weight.device))

    def forward(self, x):
        return self.linear(x) + F.linear(F.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))


@functools.cache
def fa3_operator():
    """Returns FlashAttention 3 on e4m3 as an operator opaque to torch.compile; the CPU uses SDPA instead."""

    @torch.library.custom_op("opponents::fa3_e4m3", mutates_args=())
    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (tensor.to(measure.E4M3) for tensor in (q, k, v))
        if q.is_cuda:
            return torch.ops.fa3_fwd.fwd(q, k, v)[0]
        q, k, v = (tensor.bfloat16().transpose(1, 2) for tensor in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).contiguous()

    @attention.register_fake
    def _(q, k, v):
        return torch.empty_like(q, memory_format=torch.contiguous_format)

    return attention


@contextlib.contextmanager
def fa3_attention():
    """Replaces the attention of diffusers' FLUX.1 by FlashAttention 3 within the context."""
    module, operator = transformer_module(), fa3_operator()
    original = module.dispatch_attention_fn
    module.dispatch_attention_fn = lambda query, key, value, **settings: operator(query, key, value)
    try:
        yield
    finally:
        module.dispatch_attention_fn = original


def flash_attention():
    return sdpa_kernel(SDPBackend.FLASH_ATTENTION)


class Opponents:
    """The measurements, and the transformer in the form of the last one."""

    def __init__(self, args, device):
        self.args, self.device = args, device
        self.sizes = TINY if args.cpu else FULL
        self.model, self.form = None, None
        self.eager_results = {}

    def timed(self, function, iterations=ITERATIONS, warmup=WARMUP):
        return timed(function, self.device, iterations, warmup)

    def synchronize(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    # The transformer and its forms

    def transformer(self, form):
        """Returns the model in a form: plain, or converted in place from it: fused, e4m3 or lora."""
        if self.form == form:
            return self.model
        if self.form != "plain":
            self.drop_transformer()
            self.model = build_transformer(self.sizes.transformer, self.device)
            self.form = "plain"
        if form != "plain":
            self.form = None  # a half-converted model must not pass for a plain one
            not_compiled(self.model)
            {
                "fused": lambda: self.model.fuse_qkv_projections(),
                "e4m3": lambda: replace_linears(self.model, E4m3Linear),
                "lora": lambda: replace_linears(self.model, LoraLinear),
            }[form]()
            self.form = form
        return self.model

    def drop_transformer(self):
        self.model, self.form = None, None
        torch._dynamo.reset()
        measure.free_memory()

    def load(self):
        """Times importing diffusers, and building and initialising the model."""
        start = time.perf_counter()
        transformer_module()
        imported = time.perf_counter()
        model = self.transformer("plain")
        self.synchronize()
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return {
            "seconds": time.perf_counter() - imported,
            "import_s": imported - start,
            "parameters": parameters,
            "diffusers": importlib.metadata.version("diffusers"),
        }

    # Steps

    def eager(self, name):
        """Times a step of the plain model; its result is the reference for the other variants."""
        model = not_compiled(self.transformer("plain"))
        values, result = self.step(model, name)
        self.eager_results[name] = result
        return values

    def variant(self, name, form="plain", compiled=False, attention=contextlib.nullcontext):
        expected = self.eager_result(name)
        model = not_compiled(self.transformer(form))
        with attention():
            if compiled:
                model.compile_repeated_blocks(fullgraph=True, backend=self.args.backend)
            values, result = self.step(model, name)
        not_compiled(model)
        return values | {"relative_l2": relative_l2(result, expected)}

    def eager_result(self, name):
        """Returns the result of eager in a case, computed if eager was not measured in it."""
        if name not in self.eager_results:
            inputs = step_inputs(self.sizes.cases[name], self.sizes.transformer, self.device)
            self.eager_results[name] = not_compiled(self.transformer("plain"))(**inputs)[0]
        return self.eager_results[name]

    def step(self, model, name):
        inputs = step_inputs(self.sizes.cases[name], self.sizes.transformer, self.device)
        timing, result = self.timed(lambda: model(**inputs)[0])
        return timing.values() | {"finite": finite(result)}, result

    def flux_fast(self, name):
        measure.load_fa3(self.args)
        return self.variant(name, "e4m3", compiled=True, attention=fa3_attention)

    # Other parts

    def vae(self, decodes, dtype):
        """Times the autoencoder on one image; f32 with libtorch's default for TF32."""
        self.drop_transformer()
        prepare_diffusers()
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        torch.manual_seed(0)
        with torch.device(self.device):
            vae = AutoencoderKL(**self.sizes.vae).to(dtype).eval()
        side, channels = self.sizes.pixels, self.sizes.vae["latent_channels"]
        if decodes:
            latents = torch.randn(1, channels, side // 8, side // 8, device=self.device, dtype=dtype)
            timing, result = self.timed(lambda: vae.decode(latents, return_dict=False)[0])
        else:
            picture = torch.rand(1, 3, side, side, device=self.device, dtype=dtype) * 2 - 1
            timing, result = self.timed(lambda: vae.encode(picture, return_dict=False)[0].mode())
        tf32 = {"allow_tf32_cudnn": torch.backends.cudnn.allow_tf32} if dtype == torch.float32 else {}
        return timing.values() | {"finite": finite(result)} | tf32

    def text_encoders(self):
        """Times T5-XXL's encoder and CLIP-L in sequence, and each separately."""
        self.drop_transformer()
        from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

        torch.manual_seed(0)
        with torch.device(self.device):
            t5 = T5EncoderModel(T5Config(**self.sizes.t5)).bfloat16().eval()
            clip = CLIPTextModel(CLIPTextConfig(**self.sizes.clip)).bfloat16().eval()
        t5_ids = torch.randint(self.sizes.t5["vocab_size"], (1, self.sizes.t5_tokens), device=self.device)
        clip_ids = torch.randint(self.sizes.clip["vocab_size"], (1, self.sizes.clip_tokens), device=self.device)

        def by_t5():
            return t5(t5_ids)[0]

        def by_clip():
            return clip(clip_ids).pooler_output

        timing, results = self.timed(lambda: (by_t5(), by_clip()))
        return timing.values() | {
            "t5_ms": self.timed(by_t5)[0].ms,
            "clip_ms": self.timed(by_clip)[0].ms,
            "finite": all(finite(result) for result in results),
            "transformers": importlib.metadata.version("transformers"),
        }

    def lora_training(self, name):
        """Times forward, backward with activation checkpointing of all blocks, and AdamW on the adapters."""
        case = self.sizes.cases[name]
        model = not_compiled(self.transformer("lora")).train()
        model.enable_gradient_checkpointing()
        adapters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(adapters, lr=1e-4)
        inputs = step_inputs(case, self.sizes.transformer, self.device)
        target = torch.randn(1, case.target, self.sizes.transformer["in_channels"], device=self.device)

        def train():
            velocity = model(**inputs)[0][:, : case.target]
            loss = F.mse_loss(velocity.float(), target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.detach()

        with torch.enable_grad():
            timing, loss = self.timed(train, TRAINING_ITERATIONS, TRAINING_WARMUP)
        self.drop_transformer()
        return timing.values() | {
            "finite": finite(loss),
            "tokens": case.text + case.images * case.target,
            "trained_parameters": sum(adapter.numel() for adapter in adapters),
        }


def not_compiled(model):
    """Reverts `compile_repeated_blocks`, discards compiled code, and returns the model."""
    for module in model.modules():
        module._compiled_call_impl = None
    torch._dynamo.reset()
    return model


def finite(tensor):
    return bool(tensor.isfinite().all())


def measurements(opponents):
    """Yields all measurements, by priority, with as few changes of the transformer's form as that allows."""

    def one(name, seconds, function, *given, **named):
        return Measurement(name, seconds, lambda: function(*given, **named))

    variant = opponents.variant
    yield one("load/diffusers model", 5, opponents.load)
    yield one("edit 1024/eager", 10, opponents.eager, "edit 1024")
    yield one("edit 1024/compiled", 35, variant, "edit 1024", compiled=True)
    yield one("t2i 1024/eager", 5, opponents.eager, "t2i 1024")
    yield one("t2i 1024/compiled", 20, variant, "t2i 1024", compiled=True)
    yield one("edit 512/eager", 5, opponents.eager, "edit 512")
    yield one("edit 512/compiled", 20, variant, "edit 512", compiled=True)
    yield one("edit 1024/fp8 rowwise, compiled", 25, variant, "edit 1024", "e4m3", compiled=True)
    yield one("edit 1024/fp8 rowwise, FA3 fp8, compiled", 25, opponents.flux_fast, "edit 1024")
    yield one("edit 1024/eager, flash attention", 12, variant, "edit 1024", attention=flash_attention)
    yield one("edit 1024/fused QKV", 10, variant, "edit 1024", "fused")
    for dtype in (torch.bfloat16, torch.float32):
        for direction in ("decode", "encode"):
            name = f"vae {direction} 1024/eager, {'bf16' if dtype == torch.bfloat16 else 'f32'}"
            yield one(name, 5, opponents.vae, direction == "decode", dtype)
    yield one("text encoders/eager", 12, opponents.text_encoders)
    yield one("lora training step 1024/diffusers, checkpointing", 25, opponents.lora_training, "edit 1024")


def main():
    parser = measure.arguments(__doc__, budget=240)
    parser.add_argument("--backend", help="of torch.compile (default: inductor; on the CPU aot_eager, for speed)")
    args = parser.parse_args()
    args.backend = args.backend or ("aot_eager" if args.cpu else "inductor")
    device = measure.find_device(args)
    with torch.no_grad():
        measure.run(measurements(Opponents(args, device)), args, device)


if __name__ == "__main__":
    main()
