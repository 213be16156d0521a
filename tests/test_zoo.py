"""The networks of `dsgc.zoo`: sizes, shapes and options."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dsgc import zoo

# Counted by hand or published: torchvision's AlexNet, VGG16, ResNet18 and ResNet50; 0.27 M in
# table 6 of He et al.; 2.7 M for WRN-16-4 in Zagoruyko and Komodakis.
PARAMETERS = {
    "mlp": 784 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 10 + 10,
    "lenet5": 61_706,
    "vgg8": 12_978_058,
    "dsg_resnet8": 13_222_218,
    "dsg_resnet20": 26_500_938,
    "resnet20": 269_722,
    "wrn16_4": 2_748_890,
    "alexnet": 61_100_840,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_357_544 + 2 * 4224 - 4224,  # two for one: BatchNorm replaces biases
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
}

# The smallest sensible images, so that the whole table runs in seconds.
SMALL_IMAGE = {"alexnet": 67, "vgg16": 32, "vgg16_bn": 32, "resnet18": 33, "resnet50": 33}


def small_input(name: str, batch: int = 2) -> torch.Tensor:
    """A batch of random images for the network called `name`."""
    network = zoo.NETWORKS[name]
    size = SMALL_IMAGE.get(name, network.image_size)
    return torch.randn(batch, network.in_channels, size, size)


def test_every_network_has_a_known_parameter_count() -> None:
    assert set(PARAMETERS) == set(zoo.NAMES)


@pytest.mark.parametrize("name", zoo.NAMES)
def test_parameter_count(name: str) -> None:
    with torch.device("meta"):
        model = zoo.build(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", zoo.NAMES)
def test_narrow_network_trains_a_step(name: str) -> None:
    model = zoo.build(name, classes=7, width=0.125)
    outputs = model(small_input(name))
    assert outputs.shape == (2, 7)
    outputs.square().mean().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key


@pytest.mark.parametrize("name", ["mlp", "lenet5", "vgg8", "dsg_resnet8", "dsg_resnet20"])
def test_image_size_is_built_in(name: str) -> None:
    model = zoo.build(name, width=0.125, in_channels=2, image_size=16).eval()
    assert model(torch.randn(3, 2, 16, 16)).shape == (3, 10)


@pytest.mark.parametrize("name", ["resnet20", "wrn16_4", "vgg16", "resnet18"])
def test_image_size_is_free(name: str) -> None:
    model = zoo.build(name, width=0.125, classes=4, in_channels=1, image_size=99).eval()
    for size in (32, 48):
        assert model(torch.randn(1, 1, size, size)).shape == (1, 4)


def test_vgg8_convolutions_have_no_bias() -> None:
    convolutions = [m for m in zoo.build("vgg8").modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [128, 128, 256, 256, 512, 512]
    assert all(c.bias is None for c in convolutions)


@pytest.mark.parametrize("relu_first", [False, True])
def test_order_of_relu_and_batch_norm(relu_first: bool) -> None:
    model = zoo.build("vgg8", width=0.125, relu_first=relu_first)
    kinds = [type(m) for m in model.modules() if isinstance(m, (nn.BatchNorm2d, nn.ReLU))]
    expected = [nn.ReLU, nn.BatchNorm2d] if relu_first else [nn.BatchNorm2d, nn.ReLU]
    assert kinds[:2] == expected


def test_dsg_shortcut_adds_each_sample_to_itself() -> None:
    model = zoo.build("dsg_resnet8", width=0.125).eval()
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(model(images)[1:2], model(images[1:2]))


def test_same_seed_same_parameters() -> None:
    torch.manual_seed(3)
    first = zoo.build("resnet20", width=0.5)
    torch.manual_seed(3)
    second = zoo.build("resnet20", width=0.5)
    for left, right in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(left, right)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'vgg9'.*vgg8"):
        zoo.build("vgg9")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vgg8", {"width": 0.0}, "width must be positive"),
        ("vgg8", {"width": float("nan")}, "positive and finite, not nan"),
        ("vgg8", {"width": float("inf")}, "positive and finite, not inf"),
        ("resnet20", {"depth": 21}, "depth must be 6n"),
        ("wrn16_4", {"depth": 17}, "depth must be 6n"),
    ],
)
def test_impossible_values(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zoo.build(name, **options)  # type: ignore[arg-type]


def test_unknown_option() -> None:
    with pytest.raises(TypeError, match="nonsense"):
        zoo.build("vgg8", nonsense=1)
