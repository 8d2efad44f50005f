"""GGUF files by the `gguf` package: the transformer as ComfyUI-GGUF writes it, T5's encoder as llama.cpp does.

Sources: city96/ComfyUI-GGUF@795e451 tools/{convert.py,lcpp.patch}, loader.py; llama.cpp's convert_hf_to_gguf.py.
"""

import math
import zlib

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type

RANDOM = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"]  # types that the package cannot quantise to
TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", *RANDOM]
PLAIN = (Type.F32, Type.F16, Type.BF16)
# Offsets of the f16 scales in a block, and the ratio that gives random blocks a mean near 0; the second scale
# is that of the minimum.
SCALES = {
    Type.Q4_0: [(0, 1.0)],
    Type.Q8_0: [(0, 1.0)],
    Type.Q2_K: [(80, 1.0), (82, 1.5)],
    Type.Q3_K: [(108, 1.0)],
    Type.Q4_K: [(0, 1.0), (2, 7.5)],
    Type.Q5_K: [(0, 1.0), (2, 15.5)],
    Type.Q6_K: [(208, 1.0)],
    Type.IQ4_NL: [(0, 1.0)],
    Type.IQ4_XS: [(0, 1.0)],
}
# ComfyUI-GGUF keeps these in the dtype of its input file.
KEPT = ("txt_in.", "img_in.", "time_in.", "vector_in.", "guidance_in.", "final_layer.")
SMALL = 1024  # largest number of values that ComfyUI-GGUF keeps in f32


def _set_scales(blocks, kind, scale):
    """Writes one scale for each block into its f16 fields."""
    for offset, ratio in SCALES[kind]:
        blocks[:, offset : offset + 2] = (scale * ratio).astype(np.float16).view(np.uint8).reshape(-1, 2)


def random_blocks(kind, count, std, rng):
    """Returns `count` valid blocks of random bytes, U8 [count, bytes], with values of about the deviation `std`."""
    blocks = rng.integers(0, 256, (count, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
    _set_scales(blocks, kind, np.ones((count, 1)))
    unit = gguf.dequantize(blocks, kind).std()
    _set_scales(blocks, kind, std / unit * rng.uniform(0.8, 1.2, (count, 1)))
    return blocks


def stored(name, tensor, kind):
    """Converts `tensor` to the type, U8 for block types; those in RANDOM get other values of the same deviation."""
    values = tensor.float().numpy()
    if kind.name not in RANDOM:
        return gguf.quantize(values, kind)
    count, rng = values.size // gguf.GGML_QUANT_SIZES[kind][0], np.random.default_rng(zlib.crc32(name.encode()))
    return random_blocks(kind, count, values.std(), rng).reshape(len(values), -1)


def flux_type(name, tensor, kind):
    """Returns the type of one tensor of the transformer in a file of type `kind`."""
    if tensor.ndim == 1 or tensor.numel() <= SMALL:
        return Type.F32
    return Type.BF16 if name.startswith(KEPT) and kind not in PLAIN else kind


def t5_type(name, tensor, kind):
    """Returns the type of one tensor of T5, by its name in llama.cpp; the table of relative positions is never quantised."""
    if tensor.ndim == 1:
        return Type.F32
    return Type.F16 if "attn_rel_b" in name and kind not in PLAIN else kind


def t5_names(layers):
    """llama.cpp's names of T5's tensors by transformers', for tensors called `*.weight`."""
    return gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, layers)


def t5_state(state, layers):
    """T5's tensors in llama.cpp's names."""
    names = t5_names(layers)
    kept = {name: tensor for name, tensor in state.items() if name != "encoder.embed_tokens.weight"}
    return {names.get_name(name, try_suffixes=(".weight",)): tensor for name, tensor in kept.items()}


def add_flux_fields(writer, kind):
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(file_type(kind))


def add_t5_fields(writer, kind, config, pieces):
    """Writes the metadata of llama.cpp's converter for T5's encoder; `pieces` are the tokenizer's [text, score]."""
    writer.add_name("t5xxl")
    writer.add_context_length(512)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_block_count(config.num_layers)
    writer.add_head_count(config.num_heads)
    writer.add_key_length(config.d_kv)
    writer.add_value_length(config.d_kv)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_relative_attn_buckets_count(config.relative_attention_num_buckets)
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    writer.add_file_type(file_type(kind))
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    more = range(len(pieces), config.vocab_size)  # embedding rows without a piece
    writer.add_token_list([text for text, _ in pieces] + [f"[PAD{i}]" for i in more])
    writer.add_token_scores([score for _, score in pieces] + [-10000.0] * len(more))
    writer.add_token_types([gguf.TokenType.NORMAL] * len(pieces) + [gguf.TokenType.UNUSED] * len(more))
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(True)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def file_type(kind):
    names = {"F32": "ALL_F32", "Q4_K": "MOSTLY_Q4_K_S", "Q5_K": "MOSTLY_Q5_K_S", "Q3_K": "MOSTLY_Q3_K_S"}
    return gguf.LlamaFileType[names.get(kind.name, f"MOSTLY_{kind.name}")]


def write(path, arch, fields, tensors):
    """Writes one file, a tensor at a time; `fields(writer)` adds the metadata, `tensors` are (name, type, shape, maker)."""
    writer = gguf.GGUFWriter(path, arch)
    fields(writer)
    for name, kind, shape, _ in tensors:
        size = gguf.quant_shape_to_byte_shape(shape, kind)
        writer.add_tensor_info(name, size, np.dtype(np.uint8), math.prod(size), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for *_, make in tensors:
        writer.write_tensor_data(np.ascontiguousarray(make()))
    writer.close()


def flux(path, kind, state, make):
    """Writes the transformer; `state` has BFL's names, `make(name, tensor, type)` returns the stored data of a tensor."""
    tensors = _tensors(state, make, lambda name, tensor: flux_type(name, tensor, kind))
    write(path, "flux", lambda writer: add_flux_fields(writer, kind), tensors)


def t5(path, kind, state, config, pieces, make):
    """Writes T5's encoder; `state` has transformers' names, `make` is that of `flux`."""
    tensors = _tensors(t5_state(state, config.num_layers), make, lambda name, tensor: t5_type(name, tensor, kind))
    write(path, "t5encoder", lambda writer: add_t5_fields(writer, kind, config, pieces), tensors)


def _tensors(state, make, kind_of):
    kinds = {name: kind_of(name, tensor) for name, tensor in state.items()}
    maker = lambda name: lambda: make(name, state[name], kinds[name])  # noqa: E731
    return [(name, kinds[name], tuple(tensor.shape), maker(name)) for name, tensor in state.items()]


def read(path):
    """Reads all tensors of a file in f32, with the package's own reader and dequantisation."""
    tensors = gguf.GGUFReader(path).tensors
    values = {t.name: np.array(gguf.dequantize(t.data, t.tensor_type), dtype=np.float32) for t in tensors}
    return {name: torch.from_numpy(array) for name, array in values.items()}


def read_t5(path, like):
    """`read` under transformers' names; `like` is a state dict in them."""
    layers = 1 + max(int(name.split(".")[2]) for name in like if name.startswith("encoder.block."))
    names, state = t5_names(layers), read(path)
    first = {name: name.replace("encoder.embed_tokens", "shared") for name in like}
    return {name: state[names.get_name(first[name], try_suffixes=(".weight",))] for name in like}
