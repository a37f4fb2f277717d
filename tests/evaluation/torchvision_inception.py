"""Stand-in for the parts of torchvision that pytorch-fid takes: Inception-v3 (arXiv:1512.00567) with its layers' names.

The real torchvision must be of the same build as torch, and breaks where it is not.
"""

import types

import torch
from torch import nn
from torch.nn import functional as F


class BasicConv2d(nn.Module):
    def __init__(self, inputs, outputs, **sizes):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, bias=False, **sizes)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


def _row(inputs, outputs):
    return BasicConv2d(inputs, outputs, kernel_size=(1, 7), padding=(0, 3))


def _column(inputs, outputs):
    return BasicConv2d(inputs, outputs, kernel_size=(7, 1), padding=(3, 0))


def _pooled(x):
    return F.avg_pool2d(x, kernel_size=3, stride=1, padding=1)


class InceptionA(nn.Module):
    def __init__(self, inputs, pool_features):
        super().__init__()
        self.branch1x1 = BasicConv2d(inputs, 64, kernel_size=1)
        self.branch5x5_1 = BasicConv2d(inputs, 48, kernel_size=1)
        self.branch5x5_2 = BasicConv2d(48, 64, kernel_size=5, padding=2)
        self.branch3x3dbl_1 = BasicConv2d(inputs, 64, kernel_size=1)
        self.branch3x3dbl_2 = BasicConv2d(64, 96, kernel_size=3, padding=1)
        self.branch3x3dbl_3 = BasicConv2d(96, 96, kernel_size=3, padding=1)
        self.branch_pool = BasicConv2d(inputs, pool_features, kernel_size=1)

    def forward(self, x):
        raise NotImplementedError("pytorch-fid has its own")


class InceptionB(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.branch3x3 = BasicConv2d(inputs, 384, kernel_size=3, stride=2)
        self.branch3x3dbl_1 = BasicConv2d(inputs, 64, kernel_size=1)
        self.branch3x3dbl_2 = BasicConv2d(64, 96, kernel_size=3, padding=1)
        self.branch3x3dbl_3 = BasicConv2d(96, 96, kernel_size=3, stride=2)

    def forward(self, x):
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, kernel_size=3, stride=2)], 1)


class InceptionC(nn.Module):
    def __init__(self, inputs, channels_7x7):
        super().__init__()
        self.branch1x1 = BasicConv2d(inputs, 192, kernel_size=1)
        self.branch7x7_1 = BasicConv2d(inputs, channels_7x7, kernel_size=1)
        self.branch7x7_2 = _row(channels_7x7, channels_7x7)
        self.branch7x7_3 = _column(channels_7x7, 192)
        self.branch7x7dbl_1 = BasicConv2d(inputs, channels_7x7, kernel_size=1)
        self.branch7x7dbl_2 = _column(channels_7x7, channels_7x7)
        self.branch7x7dbl_3 = _row(channels_7x7, channels_7x7)
        self.branch7x7dbl_4 = _column(channels_7x7, channels_7x7)
        self.branch7x7dbl_5 = _row(channels_7x7, 192)
        self.branch_pool = BasicConv2d(inputs, 192, kernel_size=1)

    def forward(self, x):
        raise NotImplementedError("pytorch-fid has its own")


class InceptionD(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.branch3x3_1 = BasicConv2d(inputs, 192, kernel_size=1)
        self.branch3x3_2 = BasicConv2d(192, 320, kernel_size=3, stride=2)
        self.branch7x7x3_1 = BasicConv2d(inputs, 192, kernel_size=1)
        self.branch7x7x3_2 = _row(192, 192)
        self.branch7x7x3_3 = _column(192, 192)
        self.branch7x7x3_4 = BasicConv2d(192, 192, kernel_size=3, stride=2)

    def forward(self, x):
        short = self.branch3x3_2(self.branch3x3_1(x))
        long = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([short, long, F.max_pool2d(x, kernel_size=3, stride=2)], 1)


class InceptionE(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.branch1x1 = BasicConv2d(inputs, 320, kernel_size=1)
        self.branch3x3_1 = BasicConv2d(inputs, 384, kernel_size=1)
        self.branch3x3_2a = BasicConv2d(384, 384, kernel_size=(1, 3), padding=(0, 1))
        self.branch3x3_2b = BasicConv2d(384, 384, kernel_size=(3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = BasicConv2d(inputs, 448, kernel_size=1)
        self.branch3x3dbl_2 = BasicConv2d(448, 384, kernel_size=3, padding=1)
        self.branch3x3dbl_3a = BasicConv2d(384, 384, kernel_size=(1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = BasicConv2d(384, 384, kernel_size=(3, 1), padding=(1, 0))
        self.branch_pool = BasicConv2d(inputs, 192, kernel_size=1)

    def forward(self, x):
        raise NotImplementedError("pytorch-fid has its own")


class Inception3(nn.Module):
    """Without the side classifier; only its layers are taken."""

    def __init__(self, num_classes=1000):
        super().__init__()
        self.Conv2d_1a_3x3 = BasicConv2d(3, 32, kernel_size=3, stride=2)
        self.Conv2d_2a_3x3 = BasicConv2d(32, 32, kernel_size=3)
        self.Conv2d_2b_3x3 = BasicConv2d(32, 64, kernel_size=3, padding=1)
        self.Conv2d_3b_1x1 = BasicConv2d(64, 80, kernel_size=1)
        self.Conv2d_4a_3x3 = BasicConv2d(80, 192, kernel_size=3)
        self.Mixed_5b = InceptionA(192, pool_features=32)
        self.Mixed_5c = InceptionA(256, pool_features=64)
        self.Mixed_5d = InceptionA(288, pool_features=64)
        self.Mixed_6a = InceptionB(288)
        self.Mixed_6b = InceptionC(768, channels_7x7=128)
        self.Mixed_6c = InceptionC(768, channels_7x7=160)
        self.Mixed_6d = InceptionC(768, channels_7x7=160)
        self.Mixed_6e = InceptionC(768, channels_7x7=192)
        self.Mixed_7a = InceptionD(768)
        self.Mixed_7b = InceptionE(1280)
        self.Mixed_7c = InceptionE(2048)
        self.fc = nn.Linear(2048, num_classes)


def inception_v3(num_classes=1000, aux_logits=False, weights=None, init_weights=False):
    assert not aux_logits and weights is None and not init_weights
    return Inception3(num_classes)


def module():
    """What `import torchvision` gives."""
    made = types.ModuleType("torchvision")
    made.__version__ = "0.20.0"
    blocks = (InceptionA, InceptionB, InceptionC, InceptionD, InceptionE, BasicConv2d, Inception3)
    inception = types.SimpleNamespace(**{block.__name__: block for block in blocks})
    made.models = types.SimpleNamespace(inception=inception, inception_v3=inception_v3, Inception3=Inception3)
    return made
