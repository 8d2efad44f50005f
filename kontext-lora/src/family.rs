//! The programs that write LoRA files.

/// Naming family of a LoRA file, by the program that writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum LoraFamily {
    /// diffusers and PEFT: `transformer.transformer_blocks.0.attn.to_q.lora_A.weight`.
    Diffusers,
    /// Early diffusers: `….to_q.lora.down.weight`, `….processor.to_q_lora.down.weight`.
    OldDiffusers,
    /// kohya's sd-scripts: `lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight`, with `alpha`.
    Kohya,
    /// ComfyUI and trainers for it: `diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight`.
    ComfyUi,
    /// OneTrainer: `lora_transformer_transformer_blocks_0_attn_to_q.lora_down.weight`.
    OneTrainer,
    /// XLabs: `double_blocks.0.processor.qkv_lora1.down.weight`.
    XLabs,
    /// Black Forest Labs: `double_blocks.0.img_attn.qkv.lora_A.weight`.
    Bfl,
    /// fal, and PEFT without diffusers: `base_model.model.double_blocks.0.img_attn.qkv.lora_A.weight`.
    Fal,
    /// LyCORIS: `lycoris_transformer_blocks_0_attn_to_q.lokr_w1`.
    Lycoris,
}

impl std::fmt::Display for LoraFamily {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Diffusers => "diffusers (PEFT)",
            Self::OldDiffusers => "early diffusers",
            Self::Kohya => "kohya",
            Self::ComfyUi => "ComfyUI",
            Self::OneTrainer => "OneTrainer",
            Self::XLabs => "XLabs",
            Self::Bfl => "Black Forest Labs",
            Self::Fal => "fal (PEFT)",
            Self::Lycoris => "LyCORIS",
        })
    }
}
