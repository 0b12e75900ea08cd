"""ImageNet (ILSVRC 2012), which its owners hand out to people, not to programs."""

from __future__ import annotations

from pathlib import Path

from hpff.data.broken import Policy
from hpff.data.dataset import Dataset
from hpff.data.folder import load_folder
from hpff.errors import UserError

_ARCHIVES = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz")


def load_imagenet(root: Path, broken: Policy) -> Dataset:
    """Return ImageNet from root/imagenet/train/CLASS/IMAGE and root/imagenet/val/CLASS/IMAGE.

    Raises:
        UserError: it is not there; the message says what to fetch, where to put it and how to
            unpack it.
    """
    folder = root / "imagenet"
    if not (folder / "train").is_dir():
        raise UserError(
            f"imagenet is not in {folder}; its owners let nobody else hand it out: get "
            f"{', '.join(_ARCHIVES)} from image-net.org, put them there, and unpack them by "
            f"torchvision.datasets.ImageNet({str(folder)!r}, split) for the splits 'train' and "
            "'val' (folders of your own, train/CLASS/ and val/CLASS/, will do as well)"
        )
    return load_folder(folder, "imagenet", broken, name="imagenet")
