"""Miniatures of the archives of all public data sets: their documented layout, a few cases, generated pixels.

``build(name, folder)`` writes one and says what its cases are; ``pack`` makes an archive of it, with the extra files that
macOS puts into one.
"""

from __future__ import annotations

import json
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from vlsm_adapter.data.rle import compress, encode_counts


@dataclass
class Miniature:
    """What a reader must make of the folder ``raw``.

    Attributes:
        raw: the folder, in the layout of the archive.
        truth: case id to mask.
        groups: case id to group, for cases that have one.
        classes: case id to the attribute ``class``.
        lossy: masks are JPEG and may differ along edges.
    """

    raw: Path
    truth: dict[str, np.ndarray] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    classes: dict[str, str] = field(default_factory=dict)
    lossy: bool = False

    def add(self, case_id: str, mask: np.ndarray, kind: str, group: str | None = None) -> None:
        self.truth[case_id], self.classes[case_id] = mask, kind
        if group is not None:
            self.groups[case_id] = group


def blob(seed: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """A filled ellipse, bool (H, W)."""
    random = np.random.default_rng(seed)
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    row, column = random.uniform(0.35, 0.65, 2) * size
    radii = random.uniform(0.15, 0.3, 2) * size
    return ((rows - row) / radii[0]) ** 2 + ((columns - column) / radii[1]) ** 2 <= 1


def picture(seed: int, mask: np.ndarray, colours: int = 3) -> np.ndarray:
    """A noisy picture with something brighter where ``mask`` is, uint8 (H, W, 3) or (H, W)."""
    random = np.random.default_rng(seed)
    base = random.uniform(30, 110, (*mask.shape, colours)) + 90 * mask[..., None]
    return np.uint8(base if colours > 1 else base[..., 0])


def save(path: Path, pixels: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.uint8(pixels * 255) if pixels.dtype == bool else pixels).save(path, **options)


def pack(folder: Path, archive: Path) -> Path:
    """``folder`` with its name as zip or tar, after the ending of ``archive``."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
            target.writestr(f"__MACOSX/{folder.name}/._junk", b"\0\5\x16\7")
            target.writestr(f"{folder.name}/.DS_Store", b"\0\0\0\1")
            for path in files:
                target.write(path, f"{folder.name}/{path.relative_to(folder).as_posix()}")
    else:
        with tarfile.open(archive, f"w:{archive.suffix[1:]}" if archive.suffix != ".tar" else "w") as target:
            for path in files:
                target.add(path, f"{folder.name}/{path.relative_to(folder).as_posix()}")
    return archive


def kvasir_polyp(raw: Path) -> Miniature:
    made = Miniature(raw, lossy=True)
    for number in range(3):
        name, mask = f"cju{number}abc", blob(number)
        save(raw / "images" / f"{name}.jpg", picture(number, mask), quality=90)
        save(raw / "masks" / f"{name}.jpg", mask, quality=90)
        made.add(name, mask, "polyp")
    (raw / "kavsir_bboxes.json").write_text("{}")
    return made


def test_set(raw: Path, folder: str) -> Miniature:
    made = Miniature(raw)
    for number in (1, 2, 10):
        mask = blob(number)
        save(raw / folder / "images" / f"{number}.png", picture(number, mask))
        save(raw / folder / "masks" / f"{number}.png", mask)
        made.add(str(number), mask, "polyp")
    return made


def cvc300_polyp(raw: Path) -> Miniature:
    # The folder that polyp benchmarks pass around holds the other sets too.
    test_set(raw, "CVC-ColonDB")
    return test_set(raw, "CVC-300")


def colondb_polyp(raw: Path) -> Miniature:
    test_set(raw, "ETIS-LaribPolypDB")
    return test_set(raw, "CVC-ColonDB")


def etis_polyp(raw: Path) -> Miniature:
    made = Miniature(raw)
    for number in (1, 2, 10):
        mask = blob(number)
        save(raw / "ETIS-LaribPolypDB" / f"{number}.tif", picture(number, mask))
        save(raw / "Ground Truth" / f"p{number}.tif", mask)
        made.add(str(number), mask, "polyp")
    return made


def clinicdb_polyp(raw: Path) -> Miniature:
    made = Miniature(raw)
    lines = ["frame_id,sequence_id,png_image_path,png_mask_path,tif_image_path,tif_mask_path"]
    for number, sequence in ((1, 1), (25, 1), (26, 2), (612, 29)):
        mask = blob(number)
        for folder, ending in (("PNG", "png"), ("TIF", "tif")):
            save(raw / folder / "Original" / f"{number}.{ending}", picture(number, mask))
            save(raw / folder / "Ground Truth" / f"{number}.{ending}", mask)
        names = [
            f"{kind}/{part}/{number}.{kind.lower()}" for kind in ("PNG", "TIF") for part in ("Original", "Ground Truth")
        ]
        lines.append(f"{number},{sequence}," + ",".join(names))
        made.add(str(number), mask, "polyp", f"sequence{sequence:02d}")
    (raw / "metadata.csv").write_text("\n".join(lines) + "\n")
    return made


def dfu(raw: Path) -> Miniature:
    made = Miniature(raw)
    for number in (100001, 100002, 100003):
        mask = blob(number)
        save(raw / "DFUC2022_train_images" / f"{number}.jpg", picture(number, mask))
        save(raw / "DFUC2022_train_masks" / f"{number}.png", mask)
        made.add(str(number), mask, "foot ulcer")
    return made


def busi(raw: Path) -> Miniature:
    made = Miniature(raw)
    for kind in ("benign", "malignant", "normal"):
        for number in (1, 2):
            first, second = blob(number), blob(number + 50)
            empty = np.zeros_like(first)
            stem = f"{kind} ({number})"
            save(raw / kind / f"{stem}.png", picture(number, first))
            if kind == "normal":
                save(raw / kind / f"{stem}_mask.png", empty)
                made.add(f"{number}_{kind}", empty, kind)
                continue
            save(raw / kind / f"{stem}_mask.png", first)
            if number == 2:  # two lesions, two files
                save(raw / kind / f"{stem}_mask_1.png", second)
            made.add(f"{number}_{kind}", first | second if number == 2 else first, kind)
    return made


def isic(raw: Path) -> Miniature:
    made = Miniature(raw)
    for part, numbers in (("Training", (0, 1, 2)), ("Test", (3, 4))):
        for number in numbers:
            name, mask = f"ISIC_{number:07d}", blob(number)
            save(raw / f"ISBI2016_ISIC_Part1_{part}_Data" / f"{name}.jpg", picture(number, mask))
            save(raw / f"ISBI2016_ISIC_Part1_{part}_GroundTruth" / f"{name}_Segmentation.png", mask)
            made.add(name, mask, "skin lesion")
    return made


def two_polyps(seed: int, size: tuple[int, int] = (96, 128)) -> np.ndarray:
    """uint8 (H, W): 1 a polyp in the left half, 2 one in the right; by ``seed`` one of the two or both."""
    labels = np.zeros(size, np.uint8)
    half = size[1] // 2
    if seed % 3 != 1:
        labels[:, :half][blob(seed, (size[0], half))] = 1
    if seed % 3 != 0:
        labels[:, half:][blob(seed + 9, (size[0], half))] = 2
    return labels


def red_and_green(labels: np.ndarray) -> np.ndarray:
    return np.stack([labels == 1, labels == 2, np.zeros_like(labels, bool)], axis=-1).astype(np.uint8) * np.uint8(255)


def bkai_polyp(raw: Path) -> Miniature:
    made = Miniature(raw, lossy=True)
    for number in range(3):
        labels = two_polyps(number)
        name = f"{number:032x}"
        save(raw / "train" / "train" / f"{name}.jpeg", picture(number, labels > 0))
        save(raw / "train_gt" / "train_gt" / f"{name}.jpeg", red_and_green(labels))
        made.add(name, labels > 0, "polyp")
    save(raw / "test" / "test" / "0f.jpeg", picture(9, blob(9)))
    return made


def metaimage(path: Path, pixels: np.ndarray, spacing: tuple[float, float], *, packed: bool) -> None:
    """``path`` (.mhd) and its pixels beside it; ``spacing`` is (row, column) in mm."""
    data = pixels.tobytes()
    ending = "zraw" if packed else "raw"
    header = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
        f"CompressedData = {packed}\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\n"
        f"ElementSpacing = {spacing[1]} {spacing[0]} 1\nDimSize = {pixels.shape[1]} {pixels.shape[0]} 1\n"
        f"ElementType = MET_UCHAR\nElementDataFile = {path.stem}.{ending}\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(header)
    path.with_suffix(f".{ending}").write_bytes(zlib.compress(data) if packed else data)


def echo_labels(seed: int) -> np.ndarray:
    """uint8 (H, W) with 1 inside 2, and 3 below."""
    outer, atrium = blob(seed, (60, 40)), np.zeros((60, 40), bool)
    inner = outer & np.roll(outer, 4, 0) & np.roll(outer, -4, 0)
    atrium[52:58, 15:25] = True
    return np.where(inner, 1, np.where(outer, 2, np.where(atrium, 3, 0))).astype(np.uint8)


_STRUCTURES = ("left_ventricular_cavity", "myocardium", "left_atrium_cavity")


def camus(raw: Path) -> Miniature:
    """The first release."""
    made = Miniature(raw)
    for folder, prefix, patients in (("training", "", (1, 2)), ("testing", "testing_", (1,))):
        for number in patients:
            patient = f"patient{number:04d}"
            place = raw / folder / patient
            for index, scan in enumerate(("2CH_ED", "2CH_ES", "4CH_ED", "4CH_ES")):
                labels = echo_labels(10 * number + index)
                image = picture(index, labels == 1, colours=1)
                metaimage(place / f"{patient}_{scan}.mhd", image, (0.154, 0.308), packed=index == 1)
                metaimage(place / f"{patient}_{scan}_gt.mhd", labels, (0.154, 0.308), packed=index == 2)
                for value, name in enumerate(_STRUCTURES, start=1):
                    made.add(
                        f"{prefix}{patient}_{scan}_{name}", labels == value, name.replace("_", " "), prefix + patient
                    )
            for view in ("2CH", "4CH"):
                (place / f"Info_{view}.cfg").write_text(
                    f"ED: 1\nES: 18\nNbFrame: 18\nSex: {'F' if number == 1 else 'M'}\nAge: 5{number}\n"
                    "ImageQuality: Good\nLVedv: 94.0\nLVesv: 45.3\nLVef: 51.8\n"
                )
    return made


FINDINGS = (
    *("Airspace Opacity", "Atelectasis", "Cardiomegaly", "Consolidation", "Edema"),
    *("Enlarged Cardiomediastinum", "Lung Lesion", "Pleural Effusion", "Pneumothorax", "Support Devices"),
)


def chexlocalize(raw: Path) -> Miniature:
    made = Miniature(raw)
    for subset, patients in (("val", (64541, 64542)), ("test", (64741,))):
        content: dict[str, dict] = {}
        for patient in patients:
            for view in ("view1_frontal", "view2_lateral"):
                mask = blob(patient)
                group = f"patient{patient}"
                save(raw / "CheXpert" / subset / group / "study1" / f"{view}.jpg", picture(patient, mask, colours=1))
                found = ("Cardiomegaly", "Pleural Effusion") if view.endswith("frontal") else ("Support Devices",)
                image_id = f"{group}_study1_{view}"
                content[image_id] = {
                    finding: {
                        "size": list(mask.shape),
                        "counts": compress(encode_counts(mask if finding in found else np.zeros_like(mask))),
                    }
                    for finding in FINDINGS
                }
                for finding in found:
                    made.add(f"{image_id}_{finding.lower().replace(' ', '_')}", mask, finding.lower(), group)
        path = raw / "CheXlocalize" / f"gt_segmentations_{subset}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return made


BUILDERS: dict[str, Callable[[Path], Miniature]] = {
    "bkai_polyp": bkai_polyp,
    "busi": busi,
    "camus": camus,
    "chexlocalize": chexlocalize,
    "clinicdb_polyp": clinicdb_polyp,
    "colondb_polyp": colondb_polyp,
    "cvc300_polyp": cvc300_polyp,
    "dfu": dfu,
    "etis_polyp": etis_polyp,
    "isic": isic,
    "kvasir_polyp": kvasir_polyp,
}


def build(name: str, folder: Path) -> Miniature:
    """The miniature of the set ``name``, in a new folder below ``folder``."""
    raw = folder / f"raw-{name}"
    raw.mkdir(parents=True)
    return BUILDERS[name](raw)
