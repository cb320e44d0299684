"""CIFAR-100: 60,000 colour images of 32 x 32 pixels in 100 fine classes, from the original binary version.

Source: A. Krizhevsky, Learning multiple layers of features from tiny images, 2009. The download from the real address
was not tried.
"""

from dataclasses import dataclass
from typing import final

from sparsemble.data.cifar_binary import CIFAR, Release
from sparsemble.data.dataset import data_sources
from sparsemble.data.download import Remote

FOLDER = "cifar-100-binary"
FINE_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""
RELEASE = Release(
    archive="cifar-100-binary.tar.gz",
    # Size and sha256: TensorFlow Datasets, url_checksums/cifar100.txt. The dataset's page names the md5 sum
    # 03b5dce01913d631647c71ecec9e9cb8.
    remote=Remote(
        urls=("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",),
        size=168_513_733,
        sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    ),
    train={f"{FOLDER}/train.bin": 50_000},
    test={f"{FOLDER}/test.bin": 10_000},
    label_bytes=2,
    classes=tuple(FINE_CLASSES.split()),
)


@final
@data_sources.register("cifar100")
@dataclass(frozen=True, kw_only=True)
class CIFAR100(CIFAR):
    """50,000 images to train with, of which `held_out` are held out, and 10,000 test images."""

    root: str = "~/.cache/sparsemble/cifar100"
    """Folder of cifar-100-binary.tar.gz or of its unpacked folder cifar-100-binary."""

    def _release(self) -> Release:
        return RELEASE
