from __future__ import annotations

import gzip
from pathlib import Path

import gdcm
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from dicom_files import (
    COLUMN_MM,
    ROW_MM,
    SLICE_MM,
    enhanced_ct,
    hu_values,
    save,
    series_of,
    set_pixels,
)

from backend.data.readers import read_judged, read_label, read_volume
from backend.data.volume_file import detached_data, read_stored
from backend.errors import ScanError
from backend.segment import find_scans

PIXDIM_Z = slice(88, 92)
OBLIQUE = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)


def write_image(path: Path, array: np.ndarray, *, direction: tuple[float, ...] = OBLIQUE) -> Path:
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing((0.5, 0.75, 2.0))
    image.SetOrigin((1.0, -2.0, 3.0))
    image.SetDirection(direction)
    SimpleITK.WriteImage(image, str(path))
    return path


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    image = nib.Nifti1Image(array.T, np.diag([-0.5, -0.75, 2, 1]) if affine is None else affine)
    nib.save(image, path)
    return path


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"])
def test_every_volume_format_gives_the_same_voxels_and_grid(tmp_path: Path, ending: str) -> None:
    hu = hu_values(7)
    volume = read_volume([write_image(tmp_path / f"ct{ending}", hu)])
    assert volume.voxels.dtype == np.int16
    np.testing.assert_array_equal(volume.voxels, hu)
    assert volume.geometry.size == hu.shape
    np.testing.assert_allclose(volume.geometry.spacing_mm, (2.0, 0.75, 0.5), rtol=1e-6)
    np.testing.assert_allclose(volume.geometry.origin_mm, (1.0, -2.0, 3.0), rtol=1e-6)
    np.testing.assert_allclose(volume.geometry.direction, OBLIQUE, atol=1e-6)


@pytest.mark.parametrize("ending", [".nhdr", ".mhd"])
def test_a_header_beside_its_voxels_reads_as_the_scan_lists_it(tmp_path: Path, ending: str) -> None:
    hu = hu_values(16)
    write_image(tmp_path / f"patient{ending}", hu)
    [found] = find_scans(tmp_path, single=True)
    assert found.name == "patient"
    assert len(found.files) == 2
    np.testing.assert_array_equal(read_volume(found.files).voxels, hu)


def test_slices_in_any_order_are_stacked_along_the_normal(tmp_path: Path) -> None:
    hu = hu_values(5)
    files = save(series_of(hu), tmp_path)
    volume = read_volume([files[i] for i in (3, 0, 4, 2, 1)])
    np.testing.assert_array_equal(volume.voxels, hu)
    assert volume.geometry.spacing_mm == (SLICE_MM, ROW_MM, COLUMN_MM)
    assert volume.geometry.origin_mm == (-10.0, -20.0, 100.0)
    assert volume.geometry.orientation == "LPS"


def test_a_sagittal_series_grows_along_the_cross_product_of_its_cosines(tmp_path: Path) -> None:
    hu = hu_values(4)
    slices = series_of(hu)
    for i, ds in enumerate(slices):
        ds.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
        ds.ImagePositionPatient = [3.0 * i, 0, 0]
    volume = read_volume(save(slices, tmp_path))
    # cross((0, 1, 0), (0, 0, -1)) points to -x, so the slice with the largest x comes first.
    np.testing.assert_array_equal(volume.voxels, hu[::-1])
    assert volume.geometry.origin_mm == (9.0, 0.0, 0.0)
    assert volume.geometry.orientation == "PIR"


def test_each_slice_has_its_own_rescale_and_values_are_rounded_and_clipped(tmp_path: Path) -> None:
    slices = series_of(hu_values(2))
    set_pixels(slices[0], np.array([[0, 100], [1001, 60000]]))
    slices[0].RescaleSlope, slices[0].RescaleIntercept = 0.5, -1030.2
    set_pixels(slices[1], np.array([[0, 1], [2, 3]]))
    slices[1].RescaleSlope, slices[1].RescaleIntercept = 1000, -1000
    # 60000 / 2 is no HU, which is judged apart from how values are scaled.
    voxels = read_judged(save(slices, tmp_path))[0].voxels
    np.testing.assert_array_equal(voxels[0], [[-1024, -980], [-530, 28970]])
    np.testing.assert_array_equal(voxels[1], [[-1000, 0], [1000, 2000]])


def test_padding_becomes_air_unless_it_would_pass_for_tissue(tmp_path: Path) -> None:
    slices = series_of(hu_values(2))
    for ds, padding in zip(slices, (40000, 1024), strict=True):
        set_pixels(ds, np.array([[0, 1024], [2000, padding]]))
        ds.add_new(0x00280120, "US", padding)
    voxels = read_volume(save(slices, tmp_path)).voxels
    np.testing.assert_array_equal(voxels[0], [[-1024, 0], [976, -1024]])
    np.testing.assert_array_equal(voxels[1], [[-1024, 0], [976, 0]])


@pytest.mark.parametrize(
    "syntax", ["JPEG2000Lossless", "JPEGLSLossless", "JPEGLosslessProcess14_1", "RLELossless"]
)
def test_compressed_slices_equal_the_uncompressed_ones(tmp_path: Path, syntax: str) -> None:
    hu = np.random.default_rng(1).integers(-1000, 1000, (3, 32, 32), dtype=np.int16)
    files = save(series_of(hu), tmp_path)
    plain = read_volume(files)
    packed = read_volume([compressed(f, syntax) for f in files])
    np.testing.assert_array_equal(plain.voxels, hu)
    np.testing.assert_array_equal(packed.voxels, hu)
    assert packed.geometry == plain.geometry


def compressed(path: Path, syntax: str) -> Path:
    reader, change, writer = (
        gdcm.ImageReader(),
        gdcm.ImageChangeTransferSyntax(),
        gdcm.ImageWriter(),
    )
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    target = path.with_suffix(".packed")
    writer.SetFileName(str(target))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    assert pydicom.dcmread(target).file_meta.TransferSyntaxUID.is_compressed
    return target


def test_frames_of_an_enhanced_ct_are_sorted_and_scaled_one_by_one(tmp_path: Path) -> None:
    hu = hu_values(4)
    files = save([enhanced_ct(hu, order=(2, 0, 3, 1))], tmp_path)
    volume = read_volume(files)
    np.testing.assert_array_equal(volume.voxels, hu)
    assert volume.geometry.spacing_mm == (SLICE_MM, ROW_MM, COLUMN_MM)
    assert volume.geometry.origin_mm == (-10.0, -20.0, 100.0)


def test_fractional_hu_are_rounded(tmp_path: Path) -> None:
    array = np.array([[[-1000.4, -0.6], [0.4, 1200.7]]], dtype=np.float32)
    for name in ("a.nii.gz", "a.mha"):
        voxels = read_volume([write_image(tmp_path / name, array)]).voxels
        np.testing.assert_array_equal(voxels, [[[-1000, -1], [0, 1201]]])


def test_a_compressed_scan_of_many_pieces_is_the_plain_one_and_is_refused_when_cut_or_changed(
    tmp_path: Path,
) -> None:
    hu = np.random.default_rng(0).integers(-1100, 2000, (4, 150, 160)).astype(np.int16)
    plain = read_volume([write_nifti(tmp_path / "plain.nii", hu)])
    path = write_nifti(tmp_path / "packed.nii.gz", hu)
    np.testing.assert_array_equal(plain.voxels, np.maximum(hu, -1024))
    np.testing.assert_array_equal(read_volume([path]).voxels, plain.voxels)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    cuts = (whole[: int(len(whole) * share)] for share in (0.2, 0.6, 0.999))
    for broken in (*cuts, whole[:-8], whole[:-4] + b"more", bytes(flipped), whole + b"more"):
        path.write_bytes(broken)
        with pytest.raises(ScanError, match=r"packed\.nii\.gz: unreadable"):
            read_volume([path])


def test_scaled_nifti_is_read_in_its_real_units(tmp_path: Path) -> None:
    image = nib.Nifti1Image(hu_values(3).T, np.diag([1, 1, 2, 1]))
    image.header.set_slope_inter(2.0, 10.0)
    nib.save(image, tmp_path / "a.nii.gz")
    expected = np.rint(nib.load(tmp_path / "a.nii.gz").get_fdata()).T
    voxels = read_volume([tmp_path / "a.nii.gz"]).voxels
    np.testing.assert_array_equal(voxels, np.clip(expected, -1024, None))


def test_a_tiny_shear_is_straightened_and_a_real_one_refused(tmp_path: Path) -> None:
    for shear, refused in ((5e-4, False), (1e-3, False), (0.05, True)):
        affine = np.diag([1.0, 1.0, 2.0, 1.0])
        affine[0, 1] = shear
        path = write_nifti(tmp_path / "a.nii", hu_values(3), affine)
        if refused:
            with pytest.raises(ScanError, match="sheared"):
                read_volume([path])
        else:
            matrix = read_volume([path]).geometry.direction_matrix
            np.testing.assert_allclose(matrix.T @ matrix, np.eye(3), atol=1e-6)
            np.testing.assert_allclose(matrix, np.diag([-1, -1, 1]), atol=2 * shear)


def broken_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that cannot be a CT volume, and what the error must say."""
    good = write_nifti(folder / "good.nii.gz", np.tile(hu_values(40), (1, 20, 20)))
    packed = good.read_bytes()

    def put(name: str, content: bytes) -> Path:
        path = folder / name
        path.write_bytes(content)
        return path

    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 0xFF
    flipped[len(packed) // 2 + 1] ^= 0xFF
    gaps = hu_values(3).astype(np.float32)
    gaps[1, 2, 3] = np.nan
    zero = bytearray(write_nifti(folder / "zero.nii", hu_values(3)).read_bytes())
    zero[PIXDIM_Z] = np.float32(0).tobytes()
    contrary = bytearray(zero)
    contrary[PIXDIM_Z] = np.float32(7).tobytes()
    whole = write_image(folder / "whole.mha", hu_values(30)).read_bytes()
    nrrd = write_image(folder / "whole.nrrd", hu_values(30)).read_bytes()
    return {
        "text named nifti": (put("text.nii.gz", b"hello"), "unreadable"),
        "empty file": (put("empty.nrrd", b""), "empty"),
        "truncated nifti": (put("cut.nii.gz", packed[: len(packed) * 2 // 3]), "unreadable"),
        "corrupt gzip": (put("corrupt.nii.gz", bytes(flipped)), "unreadable"),
        "truncated raw nifti": (put("cut.nii", gzip.decompress(packed)[:-500]), "unreadable"),
        "truncated mha": (put("cut.mha", whole[: len(whole) // 2]), "unreadable"),
        "truncated nrrd": (put("cut.nrrd", nrrd[: len(nrrd) // 2]), "unreadable"),
        "not a number": (write_nifti(folder / "nan.nii.gz", gaps), "NaN"),
        "infinite": (write_nifti(folder / "inf.nii.gz", gaps * np.inf), "NaN"),
        "time points": (
            write_nifti(folder / "4d.nii.gz", np.zeros((3, 4, 5, 6), np.int16)),
            "4 dimensions",
        ),
        "single slice": (write_nifti(folder / "2d.nii.gz", hu_values(1)[0]), "single slice"),
        "zero spacing": (put("zero.nii", bytes(zero)), "spacing 0.5x0.75x0 mm"),
        "two spacings": (put("two.nii", bytes(contrary)), "pixdim says 0.5x0.75x7 mm, but sform"),
        "missing": (folder / "nowhere.nii.gz", "no file"),
    }


def test_broken_files_are_refused_by_name_without_a_word_on_the_console(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cases = broken_files(tmp_path)
    for what, (path, reason) in cases.items():
        with pytest.raises(ScanError, match=reason) as caught:
            read_volume([path])
        assert path.name in str(caught.value), what
        assert "\n" not in str(caught.value), what
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("ending", "old", "new", "said"),
    [
        (".mha", b"NDims = 3", b"NDims = 99", "NDims is '99'"),
        (".mha", b"NDims = 3", b"NDims = 0", "NDims is '0'"),
        (".mha", b"NDims = 3", b"NDims = -1", "NDims is '-1'"),
        (".mha", b"NDims = 3", b"NDims = 3\nNDims\n= 2147483647", "NDims is '2147483647'"),
        (".mha", b"DimSize = 5 6 9", b"DimSize = 99999 99999 99999", "missing or corrupt"),
        (".mha", b"ElementDataFile = LOCAL", b"ElementDataFile = %s%n%d", "several files"),
        (".mha", b"Offset", b"Name = " + b"a" * 70_000 + b"\nOffset", "Name in its header has"),
        (".mha", b"ElementDataFile", b"Elephant", "names no ElementDataFile"),
        (".mha", b"LOCAL", b"a" * 5000 + b".raw", "missing or corrupt"),
        (".nrrd", b"space: left", b"space: " + b"a" * 2000 + b"left", "line 6 of its header has"),
        (".nrrd", b"sizes: 5 6 9", b"sizes: 5 6 9" + b"9" * 5000, "line 7 of its header has"),
        (".nrrd", b"sizes: 5 6 9", b"sizes: 99999 99999 99999", "missing or corrupt"),
    ],
)
def test_a_header_that_native_code_would_end_the_process_over_is_refused(
    tmp_path: Path, ending: str, old: bytes, new: bytes, said: str
) -> None:
    path = write_image(tmp_path / f"x{ending}", hu_values(9))
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    for read in (lambda: read_volume([path]), lambda: read_label(path)):
        with pytest.raises(ScanError, match=said) as caught:
            read()
        assert len(str(caught.value)) < 300 + len(str(path))


def test_long_texts_of_the_users_own_do_not_keep_a_header_from_being_read(tmp_path: Path) -> None:
    for ending, mark, own in (
        (".nrrd", b"type:", b"note:=a: "),
        (".mha", b"NDims", b"Note = "),
    ):
        path = write_image(tmp_path / f"x{ending}", hu_values(9))
        head, rest = path.read_bytes().split(mark, 1)
        path.write_bytes(head + own + b"a" * 5000 + b"\n" + mark + rest)
        np.testing.assert_array_equal(read_volume([path]).voxels, hu_values(9))


@pytest.mark.parametrize(
    ("place", "number", "said"),
    [
        (112, np.nan, "scl_slope is nan"),
        (112, np.inf, "scl_slope is inf"),
        (116, -np.inf, "invalid intercept -inf"),
        (116, 1e20, "scl_inter is 1e\\+20"),
        (88, 51, "spacing 0.5x0.75x51 mm is not within 0.05 to 50 mm"),
        (88, 0.01, "spacing 0.5x0.75x0.01 mm is not within 0.05 to 50 mm"),
    ],
)
def test_a_nifti_header_of_impossible_numbers_is_refused(
    tmp_path: Path, place: int, number: float, said: str
) -> None:
    path = write_nifti(tmp_path / "x.nii", hu_values(9))
    content = bytearray(path.read_bytes())
    content[place : place + 4] = np.float32(number).tobytes()
    path.write_bytes(content)
    with pytest.raises(ScanError, match=said):
        read_volume([path])


def test_a_nifti_that_promises_more_than_its_file_can_hold_asks_for_no_memory(
    tmp_path: Path,
) -> None:
    for name in ("x.nii", "x.nii.gz"):
        path = write_nifti(tmp_path / name, hu_values(9))
        content = path.read_bytes()
        plain = bytearray(gzip.decompress(content) if name.endswith("gz") else content)
        plain[42:48] = np.array([30000, 30000, 30000], np.int16).tobytes()
        path.write_bytes(gzip.compress(plain) if name.endswith("gz") else plain)
        with pytest.raises(ScanError, match="cut short"):
            read_volume([path])
        with pytest.raises(ScanError, match="cut short"):
            read_stored(path)


def test_dicom_that_is_no_ct_volume_is_refused_by_name(tmp_path: Path) -> None:
    def refused(name: str, slices: list, reason: str) -> None:  # type: ignore[type-arg]
        with pytest.raises(ScanError, match=reason):
            read_volume(save(slices, tmp_path / name))

    hole = series_of(hu_values(6))
    refused("hole", hole[:2] + hole[3:], "hole of 4 mm between slices 2 and 3")
    refused("twice", [*series_of(hu_values(3)), *series_of(hu_values(3))], "duplicate slices: 3")
    other = series_of(hu_values(3))
    other[1].Modality = "MR"
    refused("mr", other, "other modality: MR")
    scaleless = series_of(hu_values(3))
    del scaleless[2].RescaleIntercept
    refused("scale", scaleless, "no RescaleSlope")
    two = [*series_of(hu_values(3)), *series_of(hu_values(3))]
    for ds in two[3:]:
        ds.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    refused("mixed", two, "several series")
    bare = series_of(hu_values(3))
    del bare[1].PixelData
    refused("bare", bare, "no pixel data")


def test_a_label_map_keeps_its_values_and_grid(tmp_path: Path) -> None:
    label = np.random.default_rng(0).integers(0, 5, (4, 5, 6))
    for kind, expected in (
        (np.uint8, np.uint8),
        (np.int32, np.uint8),
        (np.float64, np.uint8),
    ):
        volume = read_label(write_image(tmp_path / "l.nii.gz", label.astype(kind)))
        assert volume.voxels.dtype == expected
        np.testing.assert_array_equal(volume.voxels, label)
        np.testing.assert_allclose(volume.geometry.direction, OBLIQUE, atol=1e-6)
    large = read_label(write_image(tmp_path / "l.nrrd", (label * 100 - 1).astype(np.int16)))
    assert large.voxels.dtype == np.int16
    np.testing.assert_array_equal(large.voxels, label * 100 - 1)


def test_what_is_no_label_map_is_refused(tmp_path: Path) -> None:
    half = write_image(tmp_path / "half.nii.gz", np.full((3, 4, 5), 0.5, np.float32))
    huge = write_image(tmp_path / "huge.nrrd", np.full((3, 4, 5), 70000, np.int32))
    gaps = write_image(tmp_path / "nan.nrrd", np.full((3, 4, 5), np.nan, np.float32))
    text = tmp_path / "label.txt"
    text.write_text("0 1 2")
    for path, reason in (
        (half, "no whole numbers"),
        (huge, "70000"),
        (gaps, "no whole numbers"),
        (text, "ending"),
        (tmp_path / "no.nii.gz", "no such file"),
    ):
        with pytest.raises(ScanError, match=reason):
            read_label(path)


def write_segmentation(path: Path, second_layer: int) -> Path:
    image = SimpleITK.GetImageFromArray(np.arange(60, dtype=np.uint8).reshape(3, 4, 5) % 3)
    for i, layer in enumerate((0, second_layer)):
        image.SetMetaData(f"Segment{i}_ID", f"Segment_{i}")
        image.SetMetaData(f"Segment{i}_LabelValue", "1" if layer else str(i + 1))
        image.SetMetaData(f"Segment{i}_Layer", str(layer))
    SimpleITK.WriteImage(image, str(path))
    return path


def test_a_slicer_segmentation_of_one_layer_is_a_label_map_and_of_two_is_refused(
    tmp_path: Path,
) -> None:
    plain = read_label(write_segmentation(tmp_path / "a.seg.nrrd", second_layer=0))
    assert sorted(set(plain.voxels.ravel().tolist())) == [0, 1, 2]
    with pytest.raises(ScanError, match="several layers"):
        read_label(write_segmentation(tmp_path / "b.seg.nrrd", second_layer=1))


def test_values_that_cannot_be_hu_are_refused_when_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    offset = rng.integers(0, 3000, (20, 24, 24)).astype(np.uint16)
    with pytest.raises(ScanError, match="not HU"):
        read_volume([write_image(tmp_path / "offset.nii.gz", offset)])


def test_stored_fractions_are_padded_by_their_own_tag(tmp_path: Path) -> None:
    slices = series_of(hu_values(2))
    for ds in slices:
        stored = ds.pixel_array.astype("<f4")
        stored[2, 2] = -5000
        del ds.PixelData, ds.PixelRepresentation, ds.BitsStored, ds.HighBit
        ds.BitsAllocated, ds.FloatPixelData = 32, stored.tobytes()
        ds.FloatPixelPaddingValue = -5000.0
        ds.add_new("PixelPaddingValue", "US", 2000)
    voxels = read_volume(save(slices, tmp_path)).voxels
    assert (voxels[:, 2, 2] == -1024).all()
    assert np.array_equal(voxels[:, 3], hu_values(2)[:, 3])


def placed(path: Path, *, qform: tuple[np.ndarray | None, int], sform: int) -> Path:
    affine = np.diag([-0.5, -0.75, 2, 1.0])
    image = nib.Nifti1Image(hu_values(4).T, affine)
    image.set_sform(affine, sform)
    image.set_qform(*qform)
    nib.save(image, path)
    return path


def test_a_nifti_whose_place_is_contradictory_or_unknown_is_refused(tmp_path: Path) -> None:
    moved, flipped = np.diag([-0.5, -0.75, 2, 1.0]), np.diag([0.5, -0.75, 2, 1.0])
    moved[0, 3] = 50
    for name, affine in (("moved", moved), ("flipped", flipped)):
        path = placed(tmp_path / f"{name}.nii.gz", qform=(affine, 1), sform=2)
        with pytest.raises(ScanError, match=r"qform and sform lie up to .* mm apart"):
            read_volume([path])
    with pytest.raises(ScanError, match="neither qform nor sform is set"):
        read_label(placed(tmp_path / "nowhere.nii.gz", qform=(None, 0), sform=0))


@pytest.mark.parametrize("codes", [(1, 0), (0, 2), (1, 1), (1, 4)])
def test_a_nifti_that_says_its_place_once_or_twice_alike_is_read(
    tmp_path: Path, codes: tuple[int, int]
) -> None:
    affine = np.diag([-0.5, -0.75, 2, 1.0])
    # As much as quaternions in single precision lose.
    affine[0, 3] = 1e-3
    path = placed(tmp_path / "a.nii.gz", qform=(affine, codes[0]), sform=codes[1])
    assert read_volume([path]).geometry.size == (4, 6, 5)


def test_files_of_two_series_are_not_one_volume(tmp_path: Path) -> None:
    slices = series_of(hu_values(6))
    for ds in slices[1::2]:
        ds.SeriesInstanceUID = "1.2.7"
    with pytest.raises(ScanError, match="several series: the files bear 2 different"):
        read_volume(save(slices, tmp_path))


@pytest.mark.parametrize(
    "syntax", ["", "JPEG2000Lossless", "JPEGLSLossless", "JPEGLosslessProcess14_1", "RLELossless"]
)
def test_a_header_that_says_less_than_the_pixel_data_hold_is_refused(
    tmp_path: Path, syntax: str
) -> None:
    hu = np.random.default_rng(1).integers(-1000, 1000, (2, 32, 32), dtype=np.int16)
    files = save(series_of(hu), tmp_path)
    files = [compressed(f, syntax) for f in files] if syntax else files
    for file in files:
        ds = pydicom.dcmread(file)
        ds.Rows = 24
        ds.save_as(file)
    with pytest.raises(ScanError, match=r"unreadable: .* but .*24 rows"):
        read_volume(files)


@pytest.mark.parametrize("packed", [False, True])
def test_too_small_a_number_of_frames_is_refused(tmp_path: Path, *, packed: bool) -> None:
    ds = enhanced_ct(hu_values(4), order=(0, 1, 2, 3))
    if packed:
        ds.compress(pydicom.uid.RLELossless)
    ds.NumberOfFrames = 3
    ds.PerFrameFunctionalGroupsSequence = ds.PerFrameFunctionalGroupsSequence[:3]
    with pytest.raises(ScanError, match=r"unreadable: .* (NumberOfFrames is 3|3 frames make)"):
        read_volume(save([ds], tmp_path))


def test_a_compressed_file_that_is_named_like_a_plain_one_is_told_with_its_name(
    tmp_path: Path,
) -> None:
    packed = write_nifti(tmp_path / "a.nii.gz", hu_values(3))
    with pytest.raises(ScanError, match=r"it is compressed; name it \.nii\.gz"):
        read_volume([packed.rename(tmp_path / "a.nii")])


def test_voxels_beyond_the_end_of_a_file_are_told_in_words(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", hu_values(3))
    raw = bytearray(path.read_bytes())
    raw[108:112] = np.float32(1e9).tobytes()
    path.write_bytes(bytes(raw))
    with pytest.raises(ScanError, match=r"unreadable: Expected \d+ bytes"):
        read_volume([path])


def test_what_a_decoder_says_is_told_not_its_announcement(tmp_path: Path) -> None:
    slices = series_of(hu_values(2))
    for ds in slices:
        ds.compress(pydicom.uid.RLELossless)
        ds.Rows *= 2
    with pytest.raises(ScanError, match=r"unreadable: \w+\.dcm: .*[^:]\. Copy") as caught:
        read_volume(save(slices, tmp_path))
    assert "plugins" not in caught.value.message


def written(path: Path, *, packed: bool) -> Path:
    """Ten slices of voxels that pass for HU."""
    hu = np.linspace(-1000, 900, 10 * 12 * 8).reshape(10, 12, 8).astype(np.int16)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(hu), str(path), packed)
    return path


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("ending", [".mha", ".mhd", ".nrrd", ".nhdr", ".nii", ".nii.gz"])
def test_a_header_that_says_less_than_the_file_holds_is_refused(
    ending: str, packed: bool, tmp_path: Path
) -> None:
    path = written(tmp_path / f"ct{ending}", packed=packed)
    assert read_volume((path,)).voxels.shape == (10, 12, 8)
    data = path.read_bytes()
    if "nii" in ending:
        plain = bytearray(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
        plain[46] = 9  # dim[3]
        data = gzip.compress(plain) if ending == ".nii.gz" else bytes(plain)
    else:
        data = data.replace(b"8 12 10", b"8 12 9 ", 1)
    path.write_bytes(data)
    with pytest.raises(ScanError, match="header tells of 1728 bytes of voxels, but it holds 1920"):
        read_volume((path,))


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_packed_voxels_with_another_checksum_are_refused(ending: str, tmp_path: Path) -> None:
    path = written(tmp_path / f"ct{ending}", packed=True)
    data = bytearray(path.read_bytes())
    data[-6] ^= 1
    path.write_bytes(data)
    with pytest.raises(ScanError, match="missing or corrupt"):
        read_volume((path,))


def test_a_nifti_that_is_turned_by_an_impossible_angle_is_told_with_its_name(
    tmp_path: Path,
) -> None:
    path = written(tmp_path / "ct.nii", packed=False)
    data = bytearray(path.read_bytes())
    data[256:260] = np.float32(2).tobytes()  # quatern_b
    path.write_bytes(data)
    with pytest.raises(ScanError, match=r"ct\.nii: unreadable: w2 should be positive"):
        read_volume((path,))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("a.mhd", "ElementDataFile = v.raw"),
        ("a.mhd", "ElementDataFile=v.raw"),
        ("a.mhd", "ElementDataFile : v.raw\r"),
        ("a.nhdr", "data file: v.raw"),
        ("a.nhdr", "Datafile:v.raw"),
    ],
)
def test_the_file_with_the_voxels_is_found_however_the_header_spells_it(
    name: str, line: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(f"NDims = 3\n{line}\n\ndata file: other.raw\n".encode())
    assert detached_data(path) == tmp_path / "v.raw"
    path.write_bytes(b"NDims = 3\nElementDataFile = LOCAL\ndata file: LIST\n")
    assert detached_data(path) is None
