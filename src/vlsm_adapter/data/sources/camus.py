"""CAMUS: echocardiography of 500 patients, three structures at two views and two phases (Leclerc et al. 2019).

First release: ``training/patient0001/patient0001_2CH_ED.mhd`` with ``.raw``, ``..._gt.mhd``, ``Info_2CH.cfg``, and
``testing/`` with patients numbered from 1 again. Present release: ``database_nifti/patient0001/..._2CH_ED.nii.gz``
and ``database_split/subgroup_training.txt`` (validation, testing). Half sequences are not read.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from vlsm_adapter.data.archives import Tree, TreeFile
from vlsm_adapter.data.prepared import RawCase
from vlsm_adapter.data.sources.base import Once, Reading, Source, add, refusal
from vlsm_adapter.data.sources.metaimage import MAX_HEADER, Slice, metaimage_spacing, read_metaimage
from vlsm_adapter.data.sources.nifti import read_nifti_slice, read_nifti_spacing
from vlsm_adapter.data.sources.pictures import Mask
from vlsm_adapter.errors import DataError

# The labels of the ground truth: name in ids, words. The published masks are called mask_1 to mask_3 after them.
STRUCTURES = {
    1: ("left_ventricular_cavity", "left ventricular cavity"),
    2: ("myocardium", "myocardium"),
    3: ("left_atrium_cavity", "left atrium cavity"),
}
_LAYOUT = (
    "patient0001/patient0001_2CH_ED.mhd and patient0001_2CH_ED_gt.mhd (in training/ and testing/), or the same as .nii.gz "
    "in database_nifti/, with Info_2CH.cfg beside"
)
_NAME = re.compile(r"^(?P<patient>patient\d{4})_(?P<view>2CH|4CH)_(?P<phase>ED|ES)(?P<gt>_gt)?$", re.IGNORECASE)
_ENDINGS = (".mhd", ".mha", ".nii.gz", ".nii")
_SUBGROUPS = {"training": "train", "validation": "val", "testing": "test"}


def _read(tree: Tree, variant: str) -> Reading:
    images: dict[tuple[str, str], TreeFile] = {}
    truths: dict[tuple[str, str], TreeFile] = {}
    for file in tree.files:
        ending = next((ending for ending in _ENDINGS if file.name.lower().endswith(ending)), None)
        match = _NAME.match(file.name[: -len(ending)]) if ending else None
        if match is None:
            continue
        patient, view, phase = match["patient"].lower(), match["view"].upper(), match["phase"].upper()
        key = (_prefix(tree, file) + patient, f"{view}_{phase}")
        (truths if match["gt"] else images)[key] = file
    if not images or not truths:
        raise refusal(tree, "CAMUS", _LAYOUT)
    warnings: list[str] = []
    if without := sorted(set(images) - set(truths)):
        warnings.append(
            f"{len(without)} images have no ground truth and are left out, the first is {images[without[0]].path}"
        )
    nifti = _is_nifti(next(iter(images.values())))
    splits = _splits(tree, {patient for patient, _ in truths}, warnings)
    cases = _cases(tree, images, truths, splits, warnings)
    patients = len({patient for patient, _ in truths})
    # The ground truth of the 50 test patients came later than the first release; both sizes are whole releases.
    expected = 5400 if not nifti and patients <= 450 else 6000
    return Reading(cases, f"CAMUS, {'NIfTI' if nifti else 'MHD'}", expected, warnings)


def _prefix(tree: Tree, file: TreeFile) -> str:
    """``testing_`` for the test patients of the first release, whose numbers are also those of others."""
    folders = [part.casefold() for part in (*tree.around, *file.parent.split("/"))]
    return "testing_" if "testing" in folders else ""


def _splits(tree: Tree, patients: set[str], warnings: list[str]) -> dict[str, str]:
    """Patient to split: by the lists of subgroups, or by the folders training/ and testing/ where both have masks."""
    found: dict[str, str] = {}
    for name, split in _SUBGROUPS.items():
        file = next((file for file in tree.files if file.name.casefold() == f"subgroup_{name}.txt"), None)
        if file is not None:
            found |= {patient.strip().lower(): split for patient in file.read_text().split() if patient.strip()}
    if found:
        missing = sorted(patients - set(found))
        if missing:
            warnings.append(
                f"{len(missing)} patients stand in no subgroup list, the first is {missing[0]}: no split is given"
            )
            return {}
        return found
    if {patient.startswith("testing_") for patient in patients} == {True, False}:
        return {patient: "test" if patient.startswith("testing_") else "train" for patient in patients}
    return {}


def _cases(
    tree: Tree,
    images: dict[tuple[str, str], TreeFile],
    truths: dict[tuple[str, str], TreeFile],
    splits: dict[str, str],
    warnings: list[str],
) -> Iterator[RawCase]:
    infos: dict[str, dict[str, str | int | float]] = {}
    without_info = 0
    for (patient, scan), truth in sorted(truths.items()):
        image = images.get((patient, scan))
        if image is None:
            warnings.append(f"{truth.path} has no image and is left out")
            continue
        view, _, phase = scan.partition("_")
        path = f"{truth.parent}/Info_{view}.cfg".lstrip("/")
        if path not in infos:
            info = tree.get(path)
            without_info += info is None
            infos[path] = _info(info) if info is not None else {}
        image_id = f"{patient}_{scan}"
        spacing = _spacing(image)
        # Three structures share one file of labels: read once, however many threads ask. Their image is asked for once.
        labels = Once(functools.partial(_labels, tree, truth))
        for label, (name, words) in STRUCTURES.items():
            yield RawCase(
                case_id=f"{image_id}_{name}",
                image=functools.partial(_pixels, tree, image),
                mask=functools.partial(_structure, labels, label),
                prompts={"p1": (words,)},
                group=patient,
                split=splits.get(patient),
                spacing=spacing,
                attributes={"class": words, "view": view, "phase": phase, **infos[path]},
                image_id=image_id,
                where=str(image),
            )
    if without_info:
        warnings.append(
            f"{without_info} scans have no Info_2CH.cfg or Info_4CH.cfg: age, sex and quality are not known"
        )


def _slice(tree: Tree, file: TreeFile) -> Slice:
    if _is_nifti(file):
        return read_nifti_slice(file)

    def beside(name: str) -> bytes:
        data = tree.get(f"{file.parent}/{name}".lstrip("/"))
        if data is None:
            raise DataError(f"{file}: its pixels are in {name}, which is not there")
        return data.read_bytes()

    return read_metaimage(file.read_bytes(), str(file), beside)


def _is_nifti(file: TreeFile) -> bool:
    return file.name.lower().endswith((".nii.gz", ".nii"))


def _spacing(file: TreeFile) -> tuple[float, float] | None:
    """As the header says; None where it cannot be read, which the image itself will then say."""
    try:
        if _is_nifti(file):
            return read_nifti_spacing(file)
        return metaimage_spacing(file.read_start(MAX_HEADER), str(file))
    except DataError:
        return None


def _pixels(tree: Tree, file: TreeFile) -> npt.NDArray[np.uint8]:
    pixels = _slice(tree, file).pixels
    low, high = float(pixels.min()), float(pixels.max())
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high > 255:
        raise DataError(f"{file}: grey values from {low:g} to {high:g}; CAMUS images have 0 to 255")
    return np.rint(pixels).astype(np.uint8)


def _labels(tree: Tree, file: TreeFile) -> npt.NDArray[np.uint8]:
    pixels = _slice(tree, file).pixels
    values = np.unique(pixels).tolist()
    if not set(values) <= {0, 1, 2, 3}:
        raise DataError(
            f"{file}: labels [{', '.join(f'{value:g}' for value in values[:6])}]; a CAMUS ground truth has 0, 1, 2, 3"
        )
    return pixels.astype(np.uint8)


def _structure(labels: Callable[[], npt.NDArray[np.uint8]], label: int) -> Mask:
    return np.asarray(labels() == label)


def _info(file: TreeFile) -> dict[str, str | int | float]:
    """Sex, age, image quality and ejection fraction of an ``Info_*.cfg``: lines ``Key: value``."""
    given: dict[str, str] = {}
    for line in file.read_text().splitlines():
        key, _, value = line.partition(":")
        given[key.strip().casefold()] = value.strip()
    found: dict[str, str | int | float] = {}
    if (sex := {"f": "female", "m": "male"}.get(given.get("sex", "")[:1].casefold())) is not None:
        found["sex"] = sex
    if (age := re.match(r"\d{1,3}", given.get("age", ""))) is not None:
        found["age"] = int(age[0])
    if quality := given.get("imagequality", "").casefold():
        found["image_quality"] = quality
    if (fraction := re.fullmatch(r"\d{1,3}(\.\d+)?", given.get("ef") or given.get("lvef", ""))) is not None:
        found["ejection_fraction"] = float(fraction[0])
    return found


def _published(case: RawCase) -> tuple[str, tuple[str, ...]]:
    """``mask_1/patient0001_2CH_ED_gt``, where val counts the patients of training/ and test those of testing/.

    In the present release patients have new numbers from 451 on; only those up to 450 are taken for the same.
    """
    number = next(label for label, (_, words) in STRUCTURES.items() if words == case.attributes["class"])
    patient = str(case.group)
    scan = f"mask_{number}/{str(case.image_id).removeprefix('testing_')}_gt"
    if patient.startswith("testing_"):
        return scan, ("test",)
    return scan, ("train", "val") if int(patient.removeprefix("patient")) <= 450 else ()


SOURCE = add(
    Source(
        name="camus",
        title="CAMUS (Cardiac Acquisitions for Multi-structure Ultrasound Segmentation)",
        about="echocardiography, left ventricle, myocardium, left atrium",
        licence="CC BY-NC-SA 4.0 as given on the download page; cite the paper",
        citation=(
            "S. Leclerc, E. Smistad, J. Pedrosa, A. Østvik, et al.: Deep Learning for Segmentation using an Open Large-Scale "
            "Dataset in 2D Echocardiography. IEEE TMI 38(9), 2019. doi:10.1109/TMI.2019.2900516"
        ),
        homepage="https://www.creatis.insa-lyon.fr/Challenge/camus/",
        cases=6000,
        images=2000,
        layout=_LAYOUT,
        read=_read,
        groups="patient (500)",
        # View, phase, sex, age and image quality come from the patient's record; p7 adds the shape of the mask.
        leak_free=("p1", "p2", "p3", "p4", "p5", "p6"),
        splits="train, val and test by the lists of subgroups (NIfTI); train and test by folder (MHD)",
        published=_published,
        notes=("Spacing is the file's own, in mm; in the first release rows and columns differ.",),
    )
)
