"""t5.safetensors and clip.safetensors: the two text encoders, in float32.

Source: transformers 4.57.6 models/t5/modeling_t5.py, models/clip/modeling_clip.py.
"""

import torch
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel
from transformers.models.t5.modeling_t5 import T5Attention

import fixture_io
import synthetic

T5_BASE = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_heads": 3,
    "num_layers": 3,
    "vocab_size": 100,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
}
T5 = {"gated": T5_BASE | {"feed_forward_proj": "gated-gelu"}, "relu": T5_BASE | {"feed_forward_proj": "relu"}}
CLIP_BASE = {
    "vocab_size": 100,
    "hidden_size": 36,
    "intermediate_size": 60,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "max_position_embeddings": 77,
    "layer_norm_eps": 1e-5,
    "bos_token_id": 0,
    "pad_token_id": 1,
}
CLIP = {
    "quick": CLIP_BASE | {"hidden_act": "quick_gelu", "eos_token_id": 2},
    "gelu": CLIP_BASE | {"hidden_act": "gelu", "eos_token_id": 2},
    "first_eos": CLIP_BASE | {"hidden_act": "quick_gelu", "eos_token_id": 50},
}
SEEDS = {"t5": 21, "clip": 22}


def token_ids(shape, low, high, seed):
    """Draws uniform token ids in [low, high), int64."""
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def t5_ids():
    """Draws two prompts of 160 tokens, the second one padded with 0 after its </s> at 40."""
    ids = token_ids((2, 160), 3, 100, 1)
    ids[0, 159] = 1
    ids[1, 40] = 1
    ids[1, 41:] = 0
    return ids


def clip_ids():
    """Draws two prompts of 77 tokens; the highest id, 99, and id 50 each occur several times, first at different places."""
    ids = token_ids((2, 77), 3, 49, 2)
    ids[:, 0] = 98
    ids[0, 12] = 50
    ids[0, 20:] = 99
    ids[1, 76] = 99
    ids[1, 5] = 50
    ids[1, 70] = 50
    return ids


def make_t5():
    ids = t5_ids()
    distance = torch.arange(-300, 301)
    tensors = {"ids": ids, "relative_position": distance}
    tensors["bucket"] = T5Attention._relative_position_bucket(distance, True, 32, 128)
    for name, config in T5.items():
        model = synthetic.fill_(T5EncoderModel(T5Config(**config)), SEEDS["t5"])
        tensors[f"{name}.last_hidden_state"] = model(ids).last_hidden_state
    fixture_io.save("t5", tensors, seed=SEEDS["t5"], **T5)


def make_clip():
    ids = clip_ids()
    tensors = {"ids": ids}
    for name, config in CLIP.items():
        model = synthetic.fill_(CLIPTextModel(CLIPTextConfig(**config)), SEEDS["clip"])
        out = model(ids)
        tensors[f"{name}.last_hidden_state"] = out.last_hidden_state
        tensors[f"{name}.pooler_output"] = out.pooler_output
    fixture_io.save("clip", tensors, seed=SEEDS["clip"], **CLIP)


@torch.no_grad()
def make():
    make_t5()
    make_clip()
