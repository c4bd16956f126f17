"""Products with frozen weights by oneDNN are those by torch, forward and backward, and keep no more."""

import pytest
import torch

from star.models import kernels
from star.models.kernels import OneDNNLinear
from star.models.sd3 import SD3

CPU = torch.device("cpu")


def frozen(kind, seed=0):
    torch.manual_seed(seed)
    return kind(12, 20).requires_grad_(False)


@pytest.mark.parametrize("shape", [(3, 7, 12), (1, 1, 12), (4, 12)])
def test_a_product_and_its_gradient_are_those_of_a_linear_layer(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float32).requires_grad_()
    outputs = [frozen(kind)(x) for kind in (torch.nn.Linear, OneDNNLinear)]
    factor = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(outputs[1], outputs[0])
    grads = [torch.autograd.grad((output * factor).sum(), x)[0] for output in outputs]
    torch.testing.assert_close(grads[1], grads[0])


def test_nothing_is_kept_for_the_backward_pass_but_the_weights():
    kept = []
    layer, x = frozen(OneDNNLinear), torch.randn(3, 7, 12, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.data_ptr()), lambda _: None):
        layer(x)
    assert kept == [layer.weight.data_ptr()]


def test_trained_layers_stay_as_they_are():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).requires_grad_(False))
    kernels.use(model, "torch")
    assert [type(layer) for layer in model] == [torch.nn.Linear] * 2
    kernels.use(model, "onednn")
    assert [type(layer) for layer in model] == [torch.nn.Linear, OneDNNLinear]


@pytest.mark.parametrize(("slower", "chosen"), [("torch", "onednn"), ("onednn", "torch"), ("neither", "onednn")])
def test_the_faster_one_is_chosen_and_a_tie_is_onednns(monkeypatch, slower, chosen):
    clock, kinds = [0.0], {torch.nn.Linear: "torch", OneDNNLinear: "onednn"}

    def forward(layer, x):
        clock[0] += 2.0 if kinds[type(layer)] == slower else 1.0

    monkeypatch.setattr(torch.nn.Linear, "forward", forward)
    monkeypatch.setattr(OneDNNLinear, "forward", forward)
    monkeypatch.setattr(kernels.time, "perf_counter", lambda: clock[0])
    assert kernels.faster() == chosen


def test_without_onednn_there_is_nothing_to_choose(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert kernels.faster() == "torch"


def test_the_model_computes_the_same_by_either(make_config):
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    velocities = []
    for kernel in kernels.KERNELS:
        base = SD3(make_config(f"model.kernels={kernel}").model, CPU, 0)
        kinds = {type(module) for module in base.transformer.modules()}
        assert (OneDNNLinear in kinds) == (kernel == "onednn")
        velocities.append(base.velocity(latents, torch.tensor(0.5), ["a ring", "a star"], 1.0))
    torch.testing.assert_close(*velocities, rtol=1e-4, atol=1e-5)
