"""torch.compile captures every architecture as one graph, with the same velocity and gradients."""

import pytest
import torch

from repa_pipe.models.architectures import make_model, preset_config
from repa_pipe.models.layers.embedders import unpatchify
from repa_pipe.pipeline.training.routing import draw_routing

MODELS = {  # preset: side and channels of the latents
    "DiT-DH-T": (4, 16),
    "LightningDiT-T/1": (4, 8),
    "RAEv2-T": (4, 16),
    "JiT-T/16": (64, 3),
    "SRDiT-T/1": (4, 8),
    "SiT-T/2": (8, 4),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_captured_graph_is_the_model_up_to_rounding(name):
    side, channels = MODELS[name]
    torch.manual_seed(0)
    torch._dynamo.reset()  # otherwise sizes that differ from an earlier test's are symbols in the graph
    with_projectors = name.startswith(("JiT", "SRDiT"))
    model = make_model(preset_config(name, input_size=side, in_channels=channels, z_dims=(32,) * with_projectors))
    for parameter in model.parameters():  # the last layers begin with zeros
        torch.nn.init.normal_(parameter, std=0.02)
    state = model.train()
    inputs = make_inputs(model, name, side, channels)
    plain = outputs_of(state, inputs)
    model.compile(backend="aot_eager", fullgraph=True)  # the graph alone: generating code for it takes minutes
    torch.testing.assert_close(outputs_of(state, inputs), plain, rtol=1e-3, atol=1e-5)


def test_patches_of_any_number_are_rearranged_in_one_graph():
    compiled = torch.compile(unpatchify, backend="eager", fullgraph=True, dynamic=True)
    for side in (4, 6):
        patches = torch.randn(2, side**2, 12)
        torch.testing.assert_close(compiled(patches, 2), unpatchify(patches, 2), rtol=0, atol=0)


def make_inputs(model, name, side, channels):
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(2, channels, side, side, generator=generator)
    if name.startswith("SRDiT"):
        cls_token = torch.randn(2, model.config.cls_dim, generator=generator)
        x_t = torch.cat([x_t.flatten(1), cls_token], dim=1)
    options = draw_routing(model.num_tokens, 2, generator) if name.startswith("SRDiT") else {}
    return (x_t, torch.tensor([0.3, 0.7]), torch.tensor([1, 5])), options


def outputs_of(model, inputs):
    model.zero_grad()
    velocity, *_ = model(*inputs[0], **inputs[1])
    velocity.square().mean().backward()
    # of parameters that are not used, the compiled model has zeros
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad.clone() for each in model.parameters()]
    assert any(gradient.any() for gradient in gradients)
    return [velocity.detach(), *gradients]
