from lightning_gp.networks.colored_mnist import ColoredMNISTMLP as ColoredMNISTMLP
from lightning_gp.networks.conv4 import Conv4 as Conv4
from lightning_gp.networks.parts import select_parameters as select_parameters
from lightning_gp.networks.parts import use_batch_statistics as use_batch_statistics
from lightning_gp.networks.pretrained import load_pretrained as load_pretrained
from lightning_gp.networks.resnet12 import ResNet12 as ResNet12
from lightning_gp.networks.sinusoid import SinusoidMLP as SinusoidMLP

__all__: list[str]
