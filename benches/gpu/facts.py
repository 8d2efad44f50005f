"""Measures the ceilings of a GPU and its libraries at the shapes of FLUX.1.

    python benches/gpu/facts.py [--fa3 DIR] [--budget 120] [--only NAME,NAME] [--skip NAME,NAME] [--cpu]

Requires only torch. Standard output has a row for each measurement, see `measure.py`; `--cpu` tests the
program itself, at tiny sizes. A step of an edit at 1024x1024 has 512 text, 4096 target and 4096 reference
tokens, 8704 rows in total. Rates count the operations or bytes required: 2 operations per multiply-add, each
byte read or written once.
"""

import contextlib
import ctypes
import os
import platform
import subprocess
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import measure
from measure import Measurement, Skip, relative_l2, timed

BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
GEMMS = {  # outputs and inputs of the linear layers, in multiples of the model's width
    "qkv": (3, 1),
    "attention out": (1, 1),
    "mlp up": (4, 1),
    "mlp down": (1, 4),
    "linear1": (7, 1),
    "linear2": (1, 5),
}
SMI_FIELDS = {
    "clocks.max.sm": "max_sm_mhz",
    "clocks.max.mem": "max_memory_mhz",
    "power.limit": "power_limit_w",
    "clocks.current.sm": "current_sm_mhz",
    "driver_version": "driver",
}


@dataclass
class Sizes:
    tokens: int = 8704
    text: int = 512
    heads: int = 24
    head: int = 128
    square: int = 8192
    copied: int = 1 << 30
    over_bus: int = 1 << 28
    side: int = 1024
    channels: int = 256
    convolved: int = 64

    @property
    def width(self):
        return self.heads * self.head


TINY = Sizes(tokens=96, text=16, heads=2, head=16, square=128, copied=1 << 20, over_bus=1 << 20, side=32, convolved=8)


class Facts:
    """The measurements: each method returns a row's values."""

    def __init__(self, args, device):
        self.args, self.device = args, device
        self.sizes = TINY if args.cpu else Sizes()

    def random(self, *shape, dtype=torch.bfloat16):
        return torch.randn(*shape, device=self.device).to(dtype)

    def timed(self, function, iterations=12):
        return timed(function, self.device, iterations, warmup=3, ahead=True)

    # The card

    def card(self):
        """Describes the card and its software, with clock and power limits if nvidia-smi reports them."""
        values = {
            "torch": torch.__version__,
            "cuda": torch.version.cuda or "none",
            "cudnn": torch.backends.cudnn.version() or "none",
            "python": platform.python_version(),
            "libc": " ".join(platform.libc_ver()),
            "cpu": cpu_name(),
            "cores": len(os.sched_getaffinity(0)),
            "threads": torch.get_num_threads(),
        }
        if self.device.type == "cpu":
            return {"name": "CPU"} | values | limits()
        properties = torch.cuda.get_device_properties(0)
        free, total = torch.cuda.mem_get_info()
        return {
            "name": properties.name,
            "total_gb": total / 1e9,
            "free_gb": free / 1e9,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "l2_mb": properties.L2_cache_size / 1e6,
            "cuda_of_driver": driver_cuda(),
            **values,
            **limits(),
        }

    # Bytes

    def copy(self):
        source = torch.empty(self.sizes.copied, dtype=torch.uint8, device=self.device).random_()
        target = torch.empty_like(source)
        timing, _ = self.timed(lambda: target.copy_(source), 20)
        return timing.values() | {"tb_per_s": 2 * self.sizes.copied / timing.ms / 1e9}

    def over_bus(self, to_device):
        pinned = self.device.type == "cuda"
        host = torch.empty(self.sizes.over_bus, dtype=torch.uint8, pin_memory=pinned).random_()
        here = torch.empty(self.sizes.over_bus, dtype=torch.uint8, device=self.device).random_()
        source, target = (host, here) if to_device else (here, host)
        timing, _ = self.timed(lambda: target.copy_(source, non_blocking=True), 10)
        return timing.values() | {"gb_per_s": self.sizes.over_bus / timing.ms / 1e6}

    def norm(self, function, shape, weighted):
        """Times a bf16 norm over several tensors in turn, so that the next one is not cached."""
        inputs = [self.random(*shape) for _ in range(4)]
        weight, bias = self.random(weighted), self.random(weighted)
        next_input = cycle(inputs)
        timing, _ = self.timed(lambda: function(next(next_input), weight, bias), 20)
        moved = 2 * inputs[0].numel() * inputs[0].element_size()
        return timing.values() | {"gb_per_s": moved / timing.ms / 1e6}

    def layer_norm(self):
        width = self.sizes.width
        shape = (self.sizes.tokens, width)
        return self.norm(lambda x, weight, bias: F.layer_norm(x, (width,), weight, bias), shape, width)

    def rms_norm(self):
        shape = (self.sizes.tokens, self.sizes.heads, self.sizes.head)
        return self.norm(lambda x, weight, _: F.rms_norm(x, (self.sizes.head,), weight, 1e-6), shape, self.sizes.head)

    def group_norm(self):
        shape = (1, 128, self.sizes.side, self.sizes.side)
        return self.norm(lambda x, weight, bias: F.group_norm(x, 32, weight, bias, 1e-6), shape, 128)

    # Matrix products

    def matmul(self, kind):
        """Times a square matrix product, and computes its error against f32."""
        size = self.sizes.square
        left, right = (self.random(size, size, dtype=torch.float32) for _ in range(2))
        with tf32(False):
            expected = left @ right.t()
        with tf32(kind == "tf32"):
            timing, product = self.timed(square_product(kind, left, right))
        return timing.values() | rate(timing, 2 * size**3) | {"relative_l2": relative_l2(product, expected)}

    def gemm(self, layer, kind, rows=None):
        """Times a linear layer of the model; kinds are those of `linear_product`."""
        rows = rows or self.sizes.tokens
        outputs, inputs = (factor * self.sizes.width for factor in GEMMS[layer])
        x, bias = self.random(rows, inputs), self.random(outputs)
        weight = self.random(outputs, inputs, dtype=torch.float32) * inputs**-0.5
        timing, _ = self.timed(linear_product(kind, x, weight, bias))
        shape = {"rows": rows, "inputs": inputs, "outputs": outputs}
        return timing.values() | rate(timing, 2 * rows * inputs * outputs) | shape

    def gelu_epilogue(self):
        """Identifies the epilogue's form of GELU by its errors against both forms, in f32."""
        size = self.sizes.channels
        left, right = (self.random(size, size, dtype=torch.float32) for _ in range(2))
        bias = self.random(size, dtype=torch.float32)
        with tf32(False):
            result = torch._addmm_activation(bias, left, right, use_gelu=True)
        expected = torch.addmm(bias.double(), left.double(), right.double())
        # Both forms agree for large inputs: only those from -3 to 3 count.
        near = expected.abs() < 3
        forms = {"tanh": F.gelu(expected, approximate="tanh"), "erf": F.gelu(expected)}
        return {f"relative_l2_{name}": relative_l2(result[near], form[near]) for name, form in forms.items()}

    # Attention

    def attention_inputs(self):
        """Returns q, k, v [1, tokens, heads, head dimension], views of a single block's `linear1` output."""
        torch.manual_seed(0)
        width = self.sizes.width
        joint = self.random(1, self.sizes.tokens, 7 * width)
        parts = (joint[..., index * width : (index + 1) * width] for index in range(3))
        return [part.unflatten(-1, (self.sizes.heads, self.sizes.head)) for part in parts]

    def attention(self, backend=None, layout="strided"):
        """Times libtorch's attention by one backend or the default one, and its error against the default."""
        if self.device.type == "cpu" and backend in ("cudnn", "efficient"):
            raise Skip("this backend is for CUDA alone.")
        q, k, v = self.attention_inputs()
        expected = by_sdpa(q, k, v)
        if layout != "strided":
            q, k, v = (tensor.contiguous() for tensor in (q, k, v))
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        if layout == "BHSD":
            q, k, v = (tensor.contiguous() for tensor in (q, k, v))
        picked = {} if backend else {"backend": backend_name(torch._fused_sdp_choice(q, k, v))}
        with sdpa_kernel(BACKENDS[backend]) if backend else contextlib.nullcontext():
            timing, result = self.timed(lambda: F.scaled_dot_product_attention(q, k, v), 8)
        return self.attention_values(timing, result.transpose(1, 2), expected) | picked

    def fa3(self, fp8):
        measure.load_fa3(self.args)
        if self.device.type == "cpu":
            raise Skip("FlashAttention 3 needs CUDA.")
        q, k, v = self.attention_inputs()
        expected = by_sdpa(q, k, v)
        factors = {}
        if fp8:
            q, k, v = (tensor.to(measure.E4M3).contiguous() for tensor in (q, k, v))
            one = torch.ones(1, self.sizes.heads, device=self.device)
            factors = {"q_descale": one, "k_descale": one, "v_descale": one}
        timing, result = self.timed(lambda: torch.ops.fa3_fwd.fwd(q, k, v, **factors)[0], 8)
        return self.attention_values(timing, result, expected)

    def attention_values(self, timing, result, expected):
        operations = 4 * self.sizes.tokens**2 * self.sizes.width
        return timing.values() | rate(timing, operations) | {"relative_l2": relative_l2(result, expected)}

    # TF32

    def tf32_defaults(self):
        """Computes errors of f32 against f64, with libtorch's default settings and with TF32 off."""
        channels, side = self.sizes.channels, self.sizes.convolved
        image = self.random(1, channels, side, side, dtype=torch.float64)
        kernel = self.random(channels, channels, 3, 3, dtype=torch.float64) * (9 * channels) ** -0.5
        left, right = (self.random(4 * channels, 4 * channels, dtype=torch.float64) for _ in range(2))

        def errors(suffix):
            convolution = F.conv2d(image.float(), kernel.float(), padding=1)
            return {
                f"convolution_{suffix}": relative_l2(convolution, F.conv2d(image, kernel, padding=1)),
                f"matmul_{suffix}": relative_l2(left.float() @ right.float(), left @ right),
            }

        values = {
            "allow_tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
            "allow_tf32_cudnn": torch.backends.cudnn.allow_tf32,
            **errors("by_default"),
        }
        with tf32(False):
            return values | errors("tf32_off")


def cpu_name():
    """Returns the name of the processor, from Linux."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def driver_cuda():
    """Returns the newest CUDA version supported by the driver."""
    version = ctypes.c_int()
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return "unknown"
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def limits():
    """Returns clocks, the power limit and the driver from nvidia-smi, or a note if it fails."""
    command = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        texts = done.stdout.strip().splitlines()[0].split(",")
        values = {name: number_or_text(text.strip()) for name, text in zip(SMI_FIELDS.values(), texts, strict=True)}
    except Exception as error:
        return {"note": f"nvidia-smi tells no limits: {type(error).__name__}: {error}"}
    return {name: value for name, value in values.items() if "N/A" not in str(value)}


def number_or_text(text):
    try:
        return float(text)
    except ValueError:
        return text


def rate(timing, operations):
    return {"tflops": operations / timing.ms / 1e9}


@contextlib.contextmanager
def tf32(allowed):
    """Allows or forbids TF32 in f32 matrix products and convolutions."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def square_product(kind, left, right):
    """Returns a function that computes `left @ right.t()`."""
    if kind in ("f32", "tf32"):
        return lambda: left @ right.t()
    if kind == "bf16":
        left, right = left.bfloat16(), right.bfloat16()
        return lambda: left @ right.t()
    return e4m3_product(left, right, kind == "fp8 rowwise")


def e4m3_product(left, right, each_row, bias=None):
    left, left_factors = measure.to_e4m3(left, each_row)
    right, right_factors = measure.to_e4m3(right, each_row)
    right_factors = right_factors.t().contiguous() if each_row else right_factors
    return lambda: measure.e4m3_linear(left, right, left_factors, right_factors, bias)


def linear_product(kind, x, weight, bias):
    """Returns a function that computes a linear layer in one of several ways."""
    if kind in ("fp8 rowwise", "fp8 tensorwise"):
        return e4m3_product(x, weight, kind == "fp8 rowwise", bias)
    weight = weight.bfloat16()
    total = torch.zeros(x.shape[0], weight.shape[0], device=x.device, dtype=x.dtype)
    return {
        "bf16": lambda: F.linear(x, weight, bias),
        "linear then gelu": lambda: F.gelu(F.linear(x, weight, bias), approximate="tanh"),
        "gelu epilogue": lambda: torch._addmm_activation(bias, x, weight.t(), use_gelu=True),
        "addmm": lambda: torch.addmm(total, x, weight.t()),
        "addmm_ in place": lambda: total.addmm_(x, weight.t()),
    }[kind]


def by_sdpa(q, k, v):
    """Computes SDPA's attention in the reference layout, [1, tokens, heads, head dimension]."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def backend_name(choice):
    numbers = {int(backend): name for name, backend in SDPBackend.__members__.items()}
    return numbers.get(int(choice), str(choice)).lower()


def measurements(facts):
    """Yields all measurements, in order."""

    def one(name, function, *given, seconds=3, **named):
        return Measurement(name, seconds, lambda: function(*given, **named))

    yield one("card", facts.card)
    yield one("copy", facts.copy)
    yield one("host to device pinned", facts.over_bus, True)
    yield one("device to host pinned", facts.over_bus, False)
    for kind in ("f32", "tf32", "bf16", "fp8 tensorwise", "fp8 rowwise"):
        yield one(f"matmul {kind}", facts.matmul, kind)
    yield one("attention default", facts.attention)
    for backend in BACKENDS:
        yield one(f"attention {backend} strided", facts.attention, backend)
    for layout in ("BSHD", "BHSD"):
        for backend in ("cudnn", "flash"):
            yield one(f"attention {backend} dense {layout}", facts.attention, backend, layout)
    yield one("attention fa3 bf16", facts.fa3, fp8=False)
    yield one("attention fa3 fp8", facts.fa3, fp8=True)
    for layer in GEMMS:
        for kind in ("bf16", "fp8 rowwise", "fp8 tensorwise"):
            yield one(f"gemm {layer} {kind}", facts.gemm, layer, kind)
    for kind in ("linear then gelu", "gelu epilogue"):
        yield one(f"gemm mlp up {kind}", facts.gemm, "mlp up", kind)
    yield one("gelu epilogue form", facts.gelu_epilogue)
    for kind in ("addmm", "addmm_ in place"):
        yield one(f"gemm mlp down {kind}", facts.gemm, "mlp down", kind)
    yield one("gemm qkv bf16 512 rows", facts.gemm, "qkv", "bf16", facts.sizes.text)
    yield one("tf32 defaults", facts.tf32_defaults)
    yield one("layer norm", facts.layer_norm)
    yield one("group norm 128 channels 1024x1024", facts.group_norm)
    yield one("rms norm", facts.rms_norm)


def main():
    args = measure.arguments(__doc__, budget=120).parse_args()
    device = measure.find_device(args)
    with torch.no_grad():
        measure.run(measurements(Facts(args, device)), args, device)


if __name__ == "__main__":
    main()
