"""lora.safetensors: LoRA files as trainers write them, and the results of peft and LyCORIS, in float32.

Source: diffusers 0.38 loaders/lora_conversion_utils.py; peft 0.21 tuners/lora, lokr; lycoris-lora 4.1.3 wrapper.py.

`file.NAME.KEY` is the tensor KEY of the file NAME; the metadata's `files` has the metadata of each file, and
`configs` the adapter_config.json that peft writes next to one. `velocity.CASE` is FluxTransformer2DModel's output, and
`clip.CASE`, `t5.CASE` are the text encoders'. All files of FAMILIES hold one set of factors (XLabs and processors: its
attention), which diffusers' own converters confirm here, patched to the sizes of the tiny model.
"""

import inspect
import json
import re
import tempfile
from pathlib import Path

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.loaders import lora_conversion_utils
from lycoris import create_lycoris
from peft import LoKrConfig, LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

import fixture_io
import synthetic

CONFIG = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "axes_dims_rope": [4, 4, 4],
    "num_layers": 1,
    "num_single_layers": 2,
    "in_channels": 16,
    "joint_attention_dim": 14,
    "pooled_projection_dim": 10,
    "guidance_embeds": True,
}
CLIP = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_act": "quick_gelu", "eos_token_id": 2}
T5 = {"d_model": 14, "d_kv": 6, "d_ff": 20, "num_heads": 2, "num_layers": 1, "vocab_size": 60, "feed_forward_proj": "gated-gelu"}
WIDTH, MLP, SEED, RANK, ALPHA = 24, 96, 61, 2, 3.0
TARGET, TEXT = (3, 2), 5
# BFL's layers: their parts in diffusers, and their sizes.
QKV = ["attn.to_q", "attn.to_k", "attn.to_v"]
DOUBLE = {
    "img_mod.lin": (["norm1.linear"], WIDTH, 6 * WIDTH),
    "img_attn.qkv": (QKV, WIDTH, 3 * WIDTH),
    "txt_attn.qkv": (["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"], WIDTH, 3 * WIDTH),
    "img_attn.proj": (["attn.to_out.0"], WIDTH, WIDTH),
    "txt_attn.proj": (["attn.to_add_out"], WIDTH, WIDTH),
    "img_mlp.0": (["ff.net.0.proj"], WIDTH, MLP),
    "img_mlp.2": (["ff.net.2"], MLP, WIDTH),
    "txt_mlp.0": (["ff_context.net.0.proj"], WIDTH, MLP),
    "txt_mlp.2": (["ff_context.net.2"], MLP, WIDTH),
}
SINGLE = {
    "linear1": ([*QKV, "proj_mlp"], WIDTH, 3 * WIDTH + MLP),
    "linear2": (["proj_out"], WIDTH + MLP, WIDTH),
    "modulation.lin": (["norm.linear"], WIDTH, 3 * WIDTH),
}
OTHER = {
    "img_in": (["x_embedder"], 16, WIDTH),
    "vector_in.out_layer": (["time_text_embed.text_embedder.linear_2"], WIDTH, WIDTH),
    "final_layer.linear": (["proj_out"], WIDTH, 16),
    "final_layer.adaLN_modulation.1": (["norm_out.linear"], WIDTH, 2 * WIDTH),
}
XLABS = {
    "img_attn.qkv": "qkv_lora1",
    "txt_attn.qkv": "qkv_lora2",
    "img_attn.proj": "proj_lora1",
    "txt_attn.proj": "proj_lora2",
    "linear1": "qkv_lora",
    "linear2": "proj_lora",
}


def layers():
    """Returns, by BFL's name of each layer, diffusers' parts, inputs and outputs."""
    all_layers = {f"double_blocks.0.{name}": ([f"transformer_blocks.0.{p}" for p in parts], *sizes) for name, (parts, *sizes) in DOUBLE.items()}
    all_layers |= {f"single_blocks.1.{name}": ([f"single_transformer_blocks.1.{p}" for p in parts], *sizes) for name, (parts, *sizes) in SINGLE.items()}
    return all_layers | OTHER


def draw(name, shape):
    """Draws values with few bits, exact in a float16 file and with alpha multiplied in."""
    return (synthetic.draw(name, shape).clamp(-3, 3) * 8).round() / 32


def factors():
    """Draws `down` and `up` by BFL's names."""
    return {name: (draw(f"{name}.down", [RANK, i]), draw(f"{name}.up", [o, RANK])) for name, (_, i, o) in layers().items()}


def attention(given):
    """Returns the subset expressible by XLabs: attention only, in single blocks without the MLP's rows."""
    kept = {name: pair for name, pair in given.items() if name.split(".", 2)[-1] in XLABS}
    return {name: (down, up[: 3 * WIDTH]) if name.endswith("linear1") else (down, up) for name, (down, up) in kept.items()}


def parts(given):
    """Converts to diffusers' names: every part with the whole `down` and its rows of `up`."""
    out = {}
    for name, (down, up) in given.items():
        if name == "final_layer.adaLN_modulation.1":
            up = torch.cat(up.chunk(2)[::-1])
        modules = [m for m in layers()[name][0] if up.shape[0] != 3 * WIDTH or not m.endswith("proj_mlp")]
        starts = [WIDTH * i for i in range(len(modules))] + [up.shape[0]]
        out |= {module: (down, up[starts[i] : starts[i + 1]]) for i, module in enumerate(modules)}
    return out


def written(given, name, down=".lora_down.weight", up=".lora_up.weight", alpha=".alpha"):
    """Builds a file: `name` gives the prefix of a layer's keys; without `alpha` the scale is in `down`."""
    out = {}
    for layer, (a, b) in given.items():
        out[name(layer) + down] = a if alpha else a * (ALPHA / RANK)
        out[name(layer) + up] = b
        if alpha:
            out[name(layer) + alpha] = torch.tensor(ALPHA)
    return out


def flat(prefix):
    return lambda layer: prefix + layer.replace(".", "_")


def xlabs_name(layer):
    blocks, index, part = layer.split(".", 2)
    return f"{blocks}.{index}.processor.{XLABS[part]}"


def processor_name(module):
    block, part = module.split(".attn.")
    return f"{block}.attn.processor.{part.removesuffix('.0')}_lora"


def families():
    """Returns the files of each family, in float16."""
    whole = factors()
    split, lora = parts(whole), (".lora_A.weight", ".lora_B.weight")
    some = attention(whole)
    in_attention = {m: pair for m, pair in parts(some).items() if ".attn." in m and "single" not in m}
    norms = {f"double_blocks.0.{s}_attn.norm.{n}_norm.scale": 1 + draw(f"{s}{n}", [12]) for s in ("img", "txt") for n in ("query", "key")}
    biases = {f"{name}.lora_B.bias": draw(f"{name}.bias", [up.shape[0]]) for name, (_, up) in whole.items()}
    files = {
        "diffusers": written(split, lambda m: f"transformer.{m}", *lora, None),
        "old": written(split, lambda m: f"transformer.{m}", ".lora.down.weight", ".lora.up.weight"),
        "processors": written(in_attention, processor_name, ".down.weight", ".up.weight", None),
        "kohya": written(whole, flat("lora_unet_")),
        "comfy": written(whole, lambda m: f"diffusion_model.{m}"),
        "onetrainer": written(split, flat("lora_transformer_")),
        "xlabs": written(some, xlabs_name, ".down.weight", ".up.weight", None),
        "bfl": written(whole, lambda m: m, *lora, None) | biases | norms,
        "fal": written(whole, lambda m: f"base_model.model.{m}", *lora, None),
        "lycoris": written(split, flat("lycoris_")),
    }
    return {name: {key: t.half() for key, t in file.items()} for name, file in files.items()}, split, parts(some), in_attention, biases


def transformer():
    return synthetic.fill_(FluxTransformer2DModel(**CONFIG), SEED)


def inputs():
    ids = torch.zeros(TARGET[0] * TARGET[1], 3)
    ids[:, 1] = torch.arange(TARGET[0]).repeat_interleave(TARGET[1])
    ids[:, 2] = torch.arange(TARGET[1]).repeat(TARGET[0])
    return {
        "hidden_states": synthetic.draw("hidden", [1, len(ids), CONFIG["in_channels"]]),
        "encoder_hidden_states": synthetic.draw("text", [1, TEXT, CONFIG["joint_attention_dim"]]),
        "pooled_projections": synthetic.draw("pooled", [1, CONFIG["pooled_projection_dim"]]),
        "img_ids": ids,
        "txt_ids": torch.zeros(TEXT, 3),
        "timestep": torch.tensor([0.6]),
        "guidance": torch.tensor([2.5]),
    }


def velocity(model):
    return model(**inputs(), return_dict=False)[0]


def with_peft(*loras, strengths=(1.0,)):
    """Returns the velocity with diffusers' adapters, each given as the keys of one file in peft's naming."""
    model = transformer()
    for index, lora in enumerate(loras):
        model.load_lora_adapter({f"transformer.{key}": t.float() for key, t in lora.items()}, adapter_name=f"a{index}")
    model.set_adapters([f"a{i}" for i in range(len(loras))], list(strengths))
    return velocity(model)


def in_peft(modules, biases=()):
    out = {}
    for module, (down, up) in modules.items():
        out |= {f"{module}.lora_A.weight": down * (ALPHA / RANK), f"{module}.lora_B.weight": up}
    return out | dict(biases)


def patched(name):
    """Patches one of diffusers' converters to our model's sizes: it hard-codes those of FLUX.1."""
    text = inspect.getsource(getattr(lora_conversion_utils, name))
    for old, new in [
        ("[3072, 3072, 3072, 12288]", f"[{WIDTH}, {WIDTH}, {WIDTH}, {MLP}]"),
        ("inner_dim = 3072", f"inner_dim = {WIDTH}"),
        ("range(19)", "range(1)"),
        ("range(38)", "range(2)"),
    ]:
        text = text.replace(old, new)
    scope = dict(vars(lora_conversion_utils))
    exec(text, scope)
    return scope[name]


CONVERTERS = {
    "kohya": "_convert_kohya_flux_lora_to_diffusers",
    "comfy": "_convert_kohya_flux_lora_to_diffusers",
    "xlabs": "_convert_xlabs_flux_lora_to_diffusers",
}


def confirm(name, file, modules):
    """Checks that diffusers' own converter, if it covers some of the layers, gives the velocity of these modules."""
    file = {key: t.float() for key, t in file.items()}
    if name in ("kohya", "comfy"):
        # It rejects the alphas of the last layers.
        file = {key: t for key, t in file.items() if "final_layer" not in key}
        modules = {module: pair for module, pair in modules.items() if module not in ("proj_out", "norm_out.linear")}
    if name in CONVERTERS:
        file = patched(CONVERTERS[name])(dict(file))
        file = {key if key.startswith("transformer.") else f"transformer.{key}": t for key, t in file.items()}
    elif name not in ("diffusers", "old"):
        return
    state, alphas, _ = FluxPipeline.lora_state_dict(file, return_alphas=True, return_lora_metadata=True)
    model = transformer()
    model.load_lora_adapter(state, network_alphas=alphas)
    expected = with_peft(in_peft(modules))
    error = (velocity(model) - expected).norm() / expected.norm()
    if error > 1e-6:
        raise ValueError(f"{name}: diffusers reads it to another velocity, {error:.1e}")


def randomize(named, spread=0.3):
    """Sets adapters, which peft and LyCORIS initialise to zero effect; row norms stay near those of the weight."""
    for name, parameter in named:
        drawn = synthetic.draw(name, parameter.shape)
        lengths = "magnitude" in name or "dora_scale" in name
        parameter.data.copy_(parameter * (1 + 0.2 * drawn).abs() if lengths else spread * drawn)


def peft_dora():
    """Returns a DoRA as diffusers saves it: the file, its metadata, and its velocity at two scales."""
    model = transformer()
    targets = ["attn.to_q", "attn.add_k_proj", "proj_mlp", "transformer_blocks.0.ff.net.2", "single_transformer_blocks.1.proj_out", "norm_out.linear"]
    names = [n for n, _ in model.named_modules() if any(n.endswith(t) for t in targets)]
    model.add_adapter(LoraConfig(r=RANK, lora_alpha=5, use_dora=True, init_lora_weights=False, target_modules=names), "dora")
    randomize((n, p) for n, p in model.named_parameters() if "lora" in n)
    out = {"velocity.dora": velocity(model)}
    with tempfile.TemporaryDirectory() as folder:
        metadata = model.peft_config["dora"].to_dict()
        state = get_peft_model_state_dict(model, adapter_name="dora")
        FluxPipeline.save_lora_weights(folder, transformer_lora_layers=state, transformer_lora_adapter_metadata=metadata)
        path = next(Path(folder).iterdir())
        file, header = load_file(path), header_of(path)
    model.set_adapters(["dora"], [0.5])
    return out | {"velocity.dora.half": velocity(model)}, file, header


def header_of(path):
    """Returns the metadata of a file without its sets of names, which peft writes in a new order at each run."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    config = {key: value for key, value in json.loads(header["lora_adapter_metadata"]).items() if not isinstance(value, list)}
    return header | {"lora_adapter_metadata": json.dumps(config, sort_keys=True)}


def peft_lokr():
    """Returns a LoKr in peft's own files: `adapter_model.safetensors` and `adapter_config.json`."""
    model = get_peft_model(transformer(), LoKrConfig(r=4, alpha=6, decompose_both=True, target_modules=["attn.to_q", "proj_mlp", "ff.net.2"]))
    randomize((n, p) for n, p in model.named_parameters() if "lokr" in n)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        file = load_file(Path(folder) / "adapter_model.safetensors")
        config = json.loads((Path(folder) / "adapter_config.json").read_text())
    return velocity(model), file, {name: config[name] for name in ("r", "alpha", "peft_type")}


LYCORIS = {
    "lokr": {"algo": "lokr", "linear_dim": 2, "linear_alpha": 3, "factor": 4},
    "lokr_both": {"algo": "lokr", "linear_dim": 1, "linear_alpha": 3, "decompose_both": True},
    "lokr_full": {"algo": "lokr", "linear_dim": 10000, "linear_alpha": 3, "factor": 3},
    "loha": {"algo": "loha", "linear_dim": 2, "linear_alpha": 3},
    "locon_dora": {"algo": "lora", "linear_dim": 2, "linear_alpha": 3, "dora_wd": True},
    "locon_columns": {"algo": "lora", "linear_dim": 2, "linear_alpha": 3, "dora_wd": True, "wd_on_output": False},
    "lokr_dora": {"algo": "lokr", "linear_dim": 2, "linear_alpha": 3, "factor": 4, "dora_wd": True},
    "full": {"algo": "full", "linear_dim": 2, "linear_alpha": 3},
}
LYCORIS_LAYERS = ["transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_add_out", "single_transformer_blocks.1.attn.to_v", "single_transformer_blocks.1.proj_mlp", "single_transformer_blocks.1.proj_out", "norm_out.linear"]


def lycoris(case):
    """Returns a LyCORIS file, and its velocity at two scales."""
    model = transformer()
    layers = LYCORIS_LAYERS[:2] if case == "full" else LYCORIS_LAYERS
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        names = ", ".join(f'"{n}"' for n in layers)
        file.write(f"enable_conv = false\ntarget_module = []\ntarget_name = [{names}]\n")
        file.flush()
        net = create_lycoris(model, 1.0, preset=file.name, **LYCORIS[case])
    if len(net.loras) != len(layers):
        raise ValueError(f"LyCORIS has {len(net.loras)} modules for {len(layers)} layers")
    net.apply_to()
    randomize(net.named_parameters(), 0.1 if case == "full" else 0.3)
    out = {f"velocity.{case}": velocity(model)}
    net.set_multiplier(0.5)
    out[f"velocity.{case}.half"] = velocity(model)
    return out, {key: t.detach().clone() for key, t in net.state_dict().items()}


def text_encoders():
    """Returns adapters of CLIP and T5 in the naming of kohya, OneTrainer and diffusers, and the encoders' outputs."""
    clip = synthetic.fill_(CLIPTextModel(CLIPTextConfig(**CLIP)), SEED)
    t5 = synthetic.fill_(T5EncoderModel(T5Config(**T5)), SEED)
    ids = torch.tensor([[3, 17, 5, 59, 59, 59]])
    out = {"text.ids": ids, "clip.plain": clip(ids).pooler_output, "t5.plain": t5(ids).last_hidden_state}
    files = {"text_kohya": {}, "text_onetrainer": {}, "text_diffusers": {}}
    for model, name, targets, flat_names, dotted in [
        (clip, "clip", ["q_proj", "out_proj", "fc1", "fc2"], ("lora_te1_", "lora_te1_"), "text_encoder."),
        (t5, "t5", ["q", "o", "wi_0", "wo"], ("lora_te3_", "lora_te2_"), "text_encoder_2."),
    ]:
        model.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, init_lora_weights=False, target_modules=targets))
        state = get_peft_model_state_dict(model)
        for key, tensor in state.items():
            tensor.data.copy_(draw(key, tensor.shape))
        output = model(ids)
        out[f"{name}.lora"] = output.pooler_output if name == "clip" else output.last_hidden_state
        for key, tensor in state.items():
            module, leaf = re.fullmatch(r"(.*)\.(lora_[AB])\.weight", key).groups()
            tensor = tensor.detach().clone()
            kohya_leaf = {"lora_A": "lora_down", "lora_B": "lora_up"}[leaf]
            for file, prefix in zip(("text_kohya", "text_onetrainer"), flat_names):
                files[file][f"{prefix}{module.replace('.', '_')}.{kohya_leaf}.weight"] = tensor
                files[file][f"{prefix}{module.replace('.', '_')}.alpha"] = torch.tensor(ALPHA)
            files["text_diffusers"][dotted + key] = tensor * (ALPHA / RANK) if leaf == "lora_A" else tensor
    return out, files


def make_families():
    """Returns files and velocities of FAMILIES."""
    files, split, in_blocks, in_attention, biases = families()
    lora = in_peft(split)
    tensors = {"velocity.whole": with_peft(lora), "velocity.attention": with_peft(in_peft(in_blocks)), "velocity.processors": with_peft(in_peft(in_attention))}
    split_biases = {}
    for key, bias in biases.items():
        name = key.removesuffix(".lora_B.bias")
        pairs = parts({name: (torch.zeros(RANK, 1), bias[:, None])})
        split_biases |= {f"{module}.lora_B.bias": up[:, 0] for module, (_, up) in pairs.items()}
    tensors["velocity.biases"] = with_peft(in_peft(split, split_biases))
    tensors["velocity.two"] = with_peft(lora, in_peft(in_attention), strengths=(0.7, -0.4))
    for name, file in files.items():
        confirm(name, file, in_blocks if name == "xlabs" else split)
    return tensors, files


@torch.no_grad()
def make():
    torch.manual_seed(SEED)  # peft initialises row norms from weights with a random change
    given = inputs()
    tensors = {f"input.{name}": value for name, value in given.items()} | {"velocity.plain": velocity(transformer())}
    made, files = make_families()
    dora, files["dora"], header = peft_dora()
    tensors |= made | dora
    tensors["velocity.peft_lokr"], files["peft_lokr"], peft_config = peft_lokr()
    for case in LYCORIS:
        made, files[case] = lycoris(case)
        tensors |= made
    made, text_files = text_encoders()
    tensors |= made
    for name, file in (files | text_files).items():
        tensors |= {f"file.{name}.{key}": tensor for key, tensor in file.items()}
    fixture_io.save("lora", tensors, seed=SEED, config=CONFIG, clip=CLIP, t5=T5, files={"dora": header}, configs={"peft_lokr": peft_config})
