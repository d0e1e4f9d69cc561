import torch
from torch import nn

from repa_pipe.models.ema import Ema
from repa_pipe.models.sit import SiT, load_sit_state, sit_config


def test_average_of_a_constant_has_its_closed_form():
    """After n steps toward a constant w, the average is w + decay ** n * (start - w)."""
    model = nn.Linear(3, 2)
    start = model.weight.detach().clone()
    ema = Ema(model, decay=0.9)
    target = torch.tensor([[1.0, -2.0, 3.0], [0.5, 0.0, -1.0]])
    with torch.no_grad():
        model.weight.copy_(target)
    for _ in range(7):
        ema.update(model)
    torch.testing.assert_close(ema.model.weight, target + 0.9**7 * (start - target))


def test_average_starts_at_the_model_and_is_independent_of_it():
    model = nn.Linear(3, 2)
    ema = Ema(model)
    assert torch.equal(ema.model.weight, model.weight)
    with torch.no_grad():
        model.weight.zero_()
    assert ema.model.weight.any()
    assert not ema.model.weight.requires_grad
    assert not ema.model.training
    assert model.weight.requires_grad


def test_one_step_at_the_published_decay_moves_by_a_ten_thousandth():
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(1.0)
    ema = Ema(model)
    with torch.no_grad():
        model.weight.fill_(2.0)
    ema.update(model)
    torch.testing.assert_close(ema.model.weight.item(), 1.0001, atol=1e-12, rtol=0)


def test_frozen_parameters_and_buffers_are_copied_exactly():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    model[1].bias.requires_grad_(False)
    ema = Ema(model, decay=0.5)
    model(torch.randn(8, 3))
    with torch.no_grad():
        model[1].bias.fill_(0.1)
    ema.update(model)
    assert torch.equal(ema.model[1].bias, model[1].bias)
    assert torch.equal(ema.model[0].running_mean, model[0].running_mean)
    assert ema.model[0].num_batches_tracked == 1


def test_average_of_a_sit_loads_into_a_sit_with_the_same_position_embedding():
    config = sit_config("SiT-T/8", input_size=16, in_channels=4, num_classes=10)
    model = SiT(config)
    ema = Ema(model)
    for _ in range(3):
        ema.update(model)
    loaded = SiT(config)
    load_sit_state(loaded, ema.model.state_dict())
    assert torch.equal(loaded.pos_embed, model.pos_embed)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value)
