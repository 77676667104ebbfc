"""Where the public datasets are, how large, and how they are read once they are here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from detector.data.download.mask_images import nuclei_records, penn_fudan_records, write_splits


@dataclass(frozen=True)
class Archive:
    """One file of a dataset.

    Attributes:
        url: of a zip or tar file.
        megabytes: it is about so large, for the question whether it finds room.
        unpacked: likewise its content.
        md5: as published; ``None`` where nothing is, then the size that the server tells must be
            met.
        folder: below the dataset's root, where it is unpacked.
        strip: leading folder of its members that is left out.
    """

    url: str
    megabytes: float
    unpacked: float
    md5: str | None = None
    folder: str = ""
    strip: str = ""

    @property
    def name(self) -> str:
        """The file's."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Source:
    """A dataset.

    Attributes:
        title: its name.
        site: its home page, with the terms of use.
        archives: what is fetched.
        words: of the command line that reads it; ``{root}`` stands for the folder.
        finish: makes what readers want of what was unpacked.
    """

    title: str
    site: str
    archives: tuple[Archive, ...]
    words: str
    finish: Callable[[Path], None] | None = None


_COCO = "http://images.cocodataset.org"
_COCO_IMAGES = (
    Archive(f"{_COCO}/zips/train2017.zip", 19337, 19300, "cced6f7f71b7629ddf16f17bbcfab6b2"),
    Archive(f"{_COCO}/zips/val2017.zip", 816, 816, "442b8da7639aecaf257c1dceb8ba8c80"),
)
_VOC = "http://host.robots.ox.ac.uk/pascal/VOC"
_LVIS = "https://dl.fbaipublicfiles.com/LVIS"

SOURCES: dict[str, Source] = {
    "coco": Source(
        "COCO 2017",
        "https://cocodataset.org",
        (
            *_COCO_IMAGES,
            Archive(
                f"{_COCO}/annotations/annotations_trainval2017.zip",
                253,
                830,
                "f4bbac642086de4f52a3fdda2de5fa2c",
            ),
        ),
        "data=coco data.root={root}",
    ),
    "lvis": Source(
        "LVIS v1",
        "https://www.lvisdataset.org",
        (
            *_COCO_IMAGES,
            Archive(f"{_LVIS}/lvis_v1_train.json.zip", 350, 1120, folder="annotations"),
            Archive(f"{_LVIS}/lvis_v1_val.json.zip", 65, 200, folder="annotations"),
        ),
        "data=lvis data.root={root}",
    ),
    "voc07": Source(
        "PASCAL VOC 2007",
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2007/",
        (
            Archive(
                f"{_VOC}/voc2007/VOCtrainval_06-Nov-2007.tar",
                460,
                460,
                "c52e279531787c972589f7e41ab4ae64",
                strip="VOCdevkit",
            ),
            Archive(
                f"{_VOC}/voc2007/VOCtest_06-Nov-2007.tar",
                451,
                451,
                "b6e924de25625d8de591ea690078ad9f",
                strip="VOCdevkit",
            ),
        ),
        "data=voc07 data.root={root}",
    ),
    "voc12": Source(
        "PASCAL VOC 2012",
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
        (
            Archive(
                f"{_VOC}/voc2012/VOCtrainval_11-May-2012.tar",
                2000,
                2000,
                "6cd6e144f989b92b3379bac3b3de84fd",
                strip="VOCdevkit",
            ),
        ),
        "data=voc07 data.root={root} data.train.splits=[[VOC2012,train]] "
        "data.val.splits=[[VOC2012,val]]",
    ),
    "penn_fudan": Source(
        "Penn-Fudan pedestrians",
        "https://www.cis.upenn.edu/~jshi/ped_html/",
        (
            Archive(
                "https://www.cis.upenn.edu/~jshi/ped_html/PennFudanPed.zip",
                54,
                60,
                strip="PennFudanPed",
            ),
        ),
        "data=custom data.root={root} data.train.images={root} data.val.images={root}",
        lambda root: write_splits(root, "pedestrian", penn_fudan_records(root)),
    ),
    "balloon": Source(
        "Balloons, of Matterport's Mask R-CNN",
        "https://github.com/matterport/Mask_RCNN/releases/tag/v2.1",
        (
            Archive(
                "https://github.com/matterport/Mask_RCNN/releases/download/v2.1/balloon_dataset.zip",
                39,
                40,
                strip="balloon",
            ),
        ),
        "data=via data.root={root}",
    ),
    "nuclei": Source(
        "Nuclei of the Data Science Bowl 2018 (BBBC038v1)",
        "https://bbbc.broadinstitute.org/BBBC038",
        (
            Archive(
                "https://data.broadinstitute.org/bbbc/BBBC038/stage1_train.zip",
                83,
                330,
                folder="stage1_train",
            ),
        ),
        "data=custom data.root={root} data.train.images={root} data.val.images={root}",
        lambda root: write_splits(root, "nucleus", nuclei_records(root)),
    ),
}
