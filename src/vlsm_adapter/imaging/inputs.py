"""Which pictures belong together: from files, folders and patterns to stacks with names of their own.

Pictures are known by their ending, NIfTI by ``.nii`` or ``.nii.gz``, DICOM by its content whatever the name.
"""

from __future__ import annotations

import glob
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from vlsm_adapter.data.entries import shown
from vlsm_adapter.data.layouts import IMAGE_SUFFIXES, natural_key
from vlsm_adapter.data.volumes import is_volume
from vlsm_adapter.errors import DataError, UserError, one_line
from vlsm_adapter.imaging import dicom_headers
from vlsm_adapter.imaging.base import Stack
from vlsm_adapter.imaging.dicom_headers import Header, NoPicture
from vlsm_adapter.imaging.dicom_in import DicomStack, stacks_of_headers
from vlsm_adapter.imaging.nifti_in import NiftiStack, stacks_of_nifti
from vlsm_adapter.imaging.options import ReadOptions
from vlsm_adapter.imaging.pictures_in import FramesStack, PagesStack, stacks_of_picture
from vlsm_adapter.output_names import image_names
from vlsm_adapter.types import Skipped

READS = f"pictures ({', '.join(sorted(IMAGE_SUFFIXES))}), NIfTI (.nii, .nii.gz) and DICOM (by content)"


@dataclass
class Found:
    """What :func:`find_stacks` made of files.

    Attributes:
        stacks: with names all different, in the order of the files.
        failures: files that cannot be used, and why.
        notes: what the user should know, a line each.
    """

    stacks: list[Stack] = field(default_factory=list)
    failures: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def input_files(
    items: Sequence[str | os.PathLike[str]], *, leave_out: str | os.PathLike[str] | None = None
) -> list[Path]:
    """The files that files, folders (with their sub-folders) and glob patterns name, each item's in natural order.

    Of folders and patterns only files that can be read are taken, a file named by itself always. Hidden files and
    linked folders are passed over.

    Args:
        items: at least one.
        leave_out: a folder whose files are no inputs where they come of a folder or pattern around it.

    Raises:
        DataError: an item names nothing that can be read.
    """
    files: list[Path] = []
    for item in items:
        text = os.fspath(item)
        if "\0" in text:
            raise DataError(f"{shown(text)}: holds a NUL character: check the path")
        path = Path(text).expanduser()
        try:
            files += [path] if path.is_file() else _many(path, text, leave_out)
        except OSError as error:
            raise DataError(f"{shown(text, 200)}: cannot be read ({error.strerror or error}): check the path") from None
    return files


def find_stacks(
    files: Sequence[Path],
    options: ReadOptions | None = None,
    *,
    workers: int = 4,
    progress: Callable[[int], None] | None = None,
) -> Found:
    """Put files together as stacks; headers alone are read, and of pictures in common formats not even those.

    A file that cannot be used is listed and the rest goes on.

    Args:
        files: as of :func:`input_files`; one listed twice counts once.
        options: plane, window, frames.
        workers: threads that read headers.
        progress: called with the number of files done.

    Raises:
        ConfigError: an extra is not installed.
    """
    options = options or ReadOptions()
    different: dict[str, Path] = {}
    for file in files:
        different.setdefault(os.path.realpath(file), Path(file))
    place = {path: number for number, path in enumerate(different.values())}
    found = Found()
    headers: list[Header] = []
    pictures: list[Path] = []
    unread: list[str] = []

    def read(path: Path) -> Header | Path | list[Stack] | DataError:
        try:
            return _read(path, options)
        except DataError as error:
            return error

    with ThreadPoolExecutor(workers) as pool:
        for number, (path, one) in enumerate(zip(place, pool.map(read, place), strict=True), start=1):
            if isinstance(one, Header):
                headers.append(one)
            elif isinstance(one, Path):
                pictures.append(one)
            elif isinstance(one, list):
                found.stacks += one
            elif isinstance(one, NoPicture) and len(place) > 1:
                unread.append(str(one))
            else:
                found.failures.append(Skipped(path.stem, str(path), str(one)))
            if progress is not None:
                progress(number)
    videos: dict[Path, list[Path]] = defaultdict(list)
    for picture in pictures:
        videos[picture.parent].append(picture)
    for folder, frames in videos.items():
        name = folder.resolve().name or "frames"
        found.stacks.append(FramesStack(sorted(frames, key=lambda path: natural_key(path.name)), name))
    series, notes = stacks_of_headers(headers, options)
    found.stacks += series
    found.notes += notes
    if unread:
        more = f" (and {len(unread) - 1} more)" if len(unread) > 1 else ""
        found.notes.append(f"left out, for it holds no picture: {unread[0]}{more}")
    found.stacks.sort(key=lambda stack: min(place[path] for path in stack.paths))
    _name(found.stacks)
    return found


def _read(path: Path, options: ReadOptions) -> Header | Path | list[Stack]:
    """The DICOM header, the frame of a video, or the stacks of a file."""
    if path.is_dir():
        raise DataError(f"{path}: is a folder, not a file: check the path")
    if is_volume(path):
        return stacks_of_nifti(path, options)
    if dicom_headers.is_dicom(path) or path.suffix.lower() in dicom_headers.ENDINGS:
        return dicom_headers.read_header(path)
    if options.frames:
        return path
    return stacks_of_picture(path)


def _many(path: Path, text: str, leave_out: str | os.PathLike[str] | None) -> list[Path]:
    """The files of a folder or pattern that can be read."""
    if path.is_dir():
        found = sorted(_below(path), key=natural_key)
        if not (usable := [file for file in found if _can_be_read(file) and not _within(file, leave_out, path)]):
            raise DataError(f"{path}: holds nothing that can be read; these are: {READS}")
        return usable
    if path.is_symlink() and not path.exists():
        raise DataError(f"{text}: is a link to what is not there: check where it leads")
    matches = sorted((Path(name) for name in glob.glob(str(path), recursive=True)), key=natural_key)  # noqa: PTH207
    if not matches:
        pattern = any(char in text for char in "*?[")
        raise DataError(f"{text}: {'matches no file' if pattern else 'no such file or folder'}: check the path")
    files = [file for one in matches for file in ([one] if one.is_file() else [])]
    if not (usable := [file for file in files if _can_be_read(file) and not _within(file, leave_out, None)]):
        raise DataError(f"{text}: matches nothing that can be read; these are: {READS}")
    return usable


def _below(folder: Path) -> Iterator[Path]:
    for base, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(base, name) for name in names if not name.startswith("."))


def _can_be_read(path: Path) -> bool:
    known = path.suffix.lower() in IMAGE_SUFFIXES | dicom_headers.ENDINGS or is_volume(path)
    return known or dicom_headers.is_dicom(path)


def _within(file: Path, leave_out: str | os.PathLike[str] | None, root: Path | None) -> bool:
    if leave_out is None:
        return False
    outputs = os.path.realpath(leave_out)
    if root is not None and Path(os.path.realpath(root)).is_relative_to(outputs):
        return False  # it was asked for
    return Path(os.path.realpath(file)).is_relative_to(outputs)


def _name(stacks: Sequence[Stack]) -> None:
    """Names all different, made of file, folder and series names alone: never of what a header says of a patient."""
    for stack, name in zip(stacks, image_names(naming_paths(stacks)), strict=True):
        stack.name = name


def naming_paths(stacks: Sequence[Stack]) -> list[Path]:
    """A path for each stack, all different, after which its outputs are named: that of its file, or one for its series."""
    by_folder: dict[Path, int] = defaultdict(int)
    for stack in stacks:
        by_folder[stack.paths[0].parent] += 1
    taken: dict[Path, int] = defaultdict(int)
    paths = []
    for stack in stacks:
        path = _naming_path(stack, by_folder[stack.paths[0].parent] == 1)
        taken[path] += 1
        paths.append(path if taken[path] == 1 else path.with_name(f"{path.stem}_{taken[path]}{path.suffix}"))
    return paths


def _naming_path(stack: Stack, alone: bool) -> Path:
    path = stack.paths[0]
    folder = path.parent
    if isinstance(stack, FramesStack):
        return Path(f"{folder.resolve()}.frames")
    if isinstance(stack, NiftiStack):
        # The ending, by which equal names are told apart, without the dot that ends a stem.
        frame = f"_frame{stack.frame:04d}" if stack.frames > 1 else ""
        stem = path.name[: -7 if path.name.lower().endswith(".gz") else -4]
        return path.with_name(f"{stem}{frame}{'.nii-gz' if path.name.lower().endswith('.gz') else '.nii'}")
    if isinstance(stack, PagesStack) and stack.pages[0] > 0:
        return path.with_name(f"{path.stem}_page{stack.pages[0]}{path.suffix}")
    if isinstance(stack, DicomStack):
        if len(stack.paths) > 1 and alone and folder.resolve().name:
            return folder.resolve().with_name(f"{folder.resolve().name}.series")
        if len(stack.paths) > 1:
            return path.with_name(f"series{stack.series_number}.series" if stack.series_number else "series.series")
        if path.suffix.lower() not in dicom_headers.ENDINGS:
            return path.with_name(f"{path.name.replace('.', '-')}.dcm")  # 'IM0001', '1.2.840.1'
    return path


def unusable(error: BaseException, path: Path) -> DataError:
    """``error``, which reading ``path`` raised, as one that names the file."""
    if isinstance(error, DataError):
        return error
    if isinstance(error, MemoryError):
        return DataError(f"{path}: too large for the memory of this machine")
    if isinstance(error, UserError):
        raise error
    return DataError(f"{path}: cannot be read ({type(error).__name__}: {one_line(error)[:160]})")
