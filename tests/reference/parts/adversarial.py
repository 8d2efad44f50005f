"""adversarial.safetensors: one step of adversarial distillation: losses and gradients of the student and of the critic's heads.

Source: arXiv 2403.12015 (LADD), with heads as in StyleGAN-T: a frozen FluxTransformer2DModel's target tokens after every
block, torch's spectral norm, one head a block, conditioned on the critic's noise level and the pooled prompt. The student
is the same model with other weights. Inputs are `input.*` of gradients.safetensors; `critic.noise` and `critic.levels`
re-noise its images and the real ones.

`PAIRING.losses` has the student's loss (0.7 of the adversarial term and 0.3 of the squared error), that term, that error,
the critic's loss, R1 and the share of pairs ranked right. `PAIRING.student` and `PAIRING.heads` [P, 1 + K] have a row for each
parameter in the order of their names, as in gradients.safetensors; the critic's gradient is that of its loss plus 0.2 R1.
Heads are synthetic weights called `HEAD.LAYER.weight`, their singular vectors before the step are `HEAD.LAYER.left` and
`.right`, normalised.
"""

import torch
from diffusers import FluxTransformer2DModel
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

import fixture_io
import synthetic
from parts import gradients

SEED, STUDENT_SEED, HEAD_SEED = 47, 48, 49
WIDTH = 16
LEVELS = [0.12, 0.4, 0.85]
ADVERSARIAL, ERROR, R1 = 0.7, 0.3, 0.2
CONFIG = gradients.CONFIGS["narrow"]
CHANNELS = CONFIG["num_attention_heads"] * CONFIG["attention_head_dim"]
BLOCKS = CONFIG["num_layers"] + CONFIG["num_single_layers"]
DIRECTIONS = 2


class Head(nn.Module):
    def __init__(self, condition):
        super().__init__()
        self.reduce = nn.Conv2d(CHANNELS, WIDTH, 1)
        self.residual = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.out = nn.Conv2d(WIDTH, WIDTH, 1)
        self.norm1, self.norm2 = nn.GroupNorm(8, WIDTH), nn.GroupNorm(8, WIDTH)
        self.condition = nn.Linear(condition, WIDTH)

    def forward(self, tokens, condition):
        x = tokens.transpose(1, 2).unflatten(2, gradients.TARGET)
        x = functional.leaky_relu(self.norm1(self.reduce(x)), 0.2)
        x = (x + functional.leaky_relu(self.norm2(self.residual(x)), 0.2)) / 2**0.5
        projection = self.condition(condition)[:, :, None, None]
        return ((self.out(x) * projection).sum(1) / WIDTH**0.5).flatten(1)


def heads(condition):
    made = nn.ModuleList(Head(condition) for _ in range(BLOCKS))
    synthetic.fill_(made, HEAD_SEED)
    for index, head in enumerate(made):
        for layer in ("reduce", "residual", "out"):
            module = parametrizations.spectral_norm(getattr(head, layer), eps=1e-12)
            norm = module.parametrizations.weight[0]
            for vector, name in ((norm._u, "left"), (norm._v, "right")):
                drawn = synthetic.draw(f"{index}.{layer}.{name}", vector.shape, HEAD_SEED)
                vector.copy_(functional.normalize(drawn, dim=0))
    return made.train()


def velocity(model, given, target, levels):
    return model(
        hidden_states=torch.cat([target, given["reference"]], dim=1),
        timestep=levels,
        guidance=torch.tensor([gradients.GUIDANCE]).expand(gradients.ITEMS),
        pooled_projections=given["pooled"],
        encoder_hidden_states=given["prompt_embeds"],
        txt_ids=torch.zeros(gradients.TEXT, 3),
        img_ids=torch.cat([given["target_ids"], given["reference_ids"]]),
        return_dict=False,
    )[0][:, : target.shape[1]]


def condition(pooled, levels):
    frequencies = torch.exp(torch.linspace(0, torch.tensor(1000.0, dtype=torch.float64).log().item(), 32))
    angles = levels[:, None] * frequencies
    return torch.cat([pooled, angles.sin(), angles.cos()], 1)


def probes(parameters, found):
    rows = sorted(zip(parameters, found), key=lambda row: row[0][0])
    return torch.stack([probe(name, gradient) for (name, _), gradient in rows])


def probe(name, gradient):
    directions = [synthetic.weight(f"{name}.direction.{i}", gradient.shape, SEED).double() for i in range(DIRECTIONS)]
    gradient = gradient.double()
    return torch.stack([gradient.norm(), *((gradient * d).sum() for d in directions)]).float()


def plain(name):
    """The name of a head's parameter without torch's parametrization."""
    return name.replace("parametrizations.weight.original", "weight")


def case(pairing, given, levels, noise):
    teacher = synthetic.fill_(FluxTransformer2DModel(**CONFIG), SEED).requires_grad_(False)
    student = synthetic.fill_(FluxTransformer2DModel(**CONFIG), STUDENT_SEED)
    critic = heads(given["pooled"].shape[1] + 64)
    seen = []
    for block in [*teacher.transformer_blocks, *teacher.single_transformer_blocks]:
        block.register_forward_hook(lambda module, args, output: seen.append(output[1][:, : given["picture"].shape[1]]))

    def features(image):
        seen.clear()
        weight = levels[:, None, None]
        velocity(teacher, given, (1 - weight) * image + weight * noise, levels)
        return [functional.layer_norm(tokens, tokens.shape[-1:], eps=1e-6) for tokens in seen]

    asked = condition(given["pooled"], levels)
    logits = lambda all: torch.cat([head(tokens, asked) for head, tokens in zip(critic, all)], 1)
    sigmas = given["sigmas"].reshape(-1, 1, 1)
    noisy = (1 - sigmas) * given["picture"] + sigmas * given["noise"]
    fake = noisy - sigmas * velocity(student, given, noisy, given["sigmas"])
    fake_features, real_features = features(fake), features(given["picture"])
    # One power iteration a step: all passes of the step have the same weights.
    with parametrize.cached():
        fake_logits, real_logits = logits(fake_features), logits(real_features).detach()
        relativistic = pairing == "relativistic"
        term = functional.softplus(real_logits - fake_logits).mean() if relativistic else -fake_logits.mean()
        error = functional.mse_loss(fake, given["picture"])
        total = ADVERSARIAL * term + ERROR * error
        named = list(student.named_parameters())
        student_gradients = torch.autograd.grad(total, [p for _, p in named], retain_graph=True)

        leaves = [tokens.detach().requires_grad_(True) for tokens in real_features]
        real_logits, fake_logits = logits(leaves), logits([tokens.detach() for tokens in fake_features])
        if relativistic:
            loss = functional.softplus(fake_logits - real_logits).mean()
        else:
            loss = functional.relu(1 - real_logits).mean() + functional.relu(1 + fake_logits).mean()
        found = torch.autograd.grad(real_logits.sum(), leaves, create_graph=True)
        r1 = sum(gradient.pow(2).sum((1, 2)).mean() for gradient in found)
        head_named = [(plain(name), p) for name, p in critic.named_parameters()]
        head_gradients = torch.autograd.grad(loss + R1 * r1, [p for _, p in head_named])
    right = (real_logits.mean(1) > fake_logits.mean(1)).float().mean()
    return {
        f"{pairing}.losses": torch.stack([total, term, error, loss, r1, right]),
        f"{pairing}.student": probes(named, student_gradients),
        f"{pairing}.heads": probes(head_named, head_gradients),
    }


def make():
    given = gradients.inputs()
    # The model's times are 1000 times these; gradients.py passes the same ones.
    levels = torch.tensor(LEVELS)
    noise = synthetic.draw("critic.noise", given["picture"].shape)
    tensors = {"critic.levels": levels, "critic.noise": noise}
    for pairing in ("relativistic", "hinge"):
        tensors |= case(pairing, given, levels, noise)
    fixture_io.save("adversarial", tensors, seeds=[SEED, STUDENT_SEED, HEAD_SEED], width=WIDTH, directions=DIRECTIONS)
