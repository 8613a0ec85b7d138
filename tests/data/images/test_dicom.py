import numpy as np
import pytest

from src.data.images.decode import read_image
from src.data.images.errors import ImageFileError

pydicom = pytest.importorskip("pydicom")


def write(path, values=None, kind="MONOCHROME2", **tags):
    """Writes a DICOM file of uint8, uint16 or int16 values."""
    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = pydicom.uid.ComputedRadiographyImageStorage
    file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    if values is not None:
        n_bits = 8 * values.dtype.itemsize
        file.Rows, file.Columns = values.shape[:2]
        file.SamplesPerPixel = 3 if values.ndim == 3 else 1
        if values.ndim == 3:
            file.PlanarConfiguration = 0
        file.BitsAllocated = file.BitsStored = n_bits
        file.HighBit = n_bits - 1
        file.PixelRepresentation = int(values.dtype.kind == "i")
        file.PhotometricInterpretation = kind
        file.PixelData = values.tobytes()
        file["PixelData"].VR = "OW" if n_bits == 16 else "OB"
    for name, value in tags.items():
        setattr(file, name, value)
    file.save_as(path, enforce_file_format=True)
    return path


def grey(path, **options):
    pixels = read_image(path, **options)
    assert pixels.dtype == np.uint8
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0].tolist()


VALUES = np.array([[0, 1000, 1500, 2000]], np.uint16)


def test_values_go_from_the_smallest_to_the_largest_without_a_window(tmp_path):
    assert grey(write(tmp_path / "a.dcm", VALUES)) == [[0, 128, 191, 255]]


def test_monochrome1_is_inverted(tmp_path):
    assert grey(write(tmp_path / "a.dcm", VALUES, "MONOCHROME1")) == [[255, 127, 64, 0]]


def test_the_first_window_of_the_file_is_taken(tmp_path):
    path = write(tmp_path / "a.dcm", VALUES, WindowCenter=[1500.5, 10], WindowWidth=[1001, 10])
    assert grey(path) == [[0, 0, 128, 255]]
    assert grey(path, window=[1000.5, 2001]) == [[0, 128, 191, 255]]


def test_a_window_is_of_rescaled_values(tmp_path):
    values = np.array([[-200, 0, 40, 280]], np.int16)
    path = write(
        tmp_path / "a.dcm", values - 24, RescaleSlope=1, RescaleIntercept=24, WindowCenter=40.5, WindowWidth=401
    )
    assert grey(path) == [[0, 102, 128, 255]]


@pytest.mark.parametrize(
    ("function", "shown"), [("LINEAR_EXACT", [0, 128, 191, 255]), ("SIGMOID", [30, 128, 186, 225])]
)
def test_other_window_functions(tmp_path, function, shown):
    path = write(tmp_path / "a.dcm", VALUES, WindowCenter=1000, WindowWidth=2000, VOILUTFunction=function)
    assert grey(path) == [shown]


def test_a_table_of_values_of_interest_is_taken_before_a_window(tmp_path):
    table = pydicom.Dataset()
    table.LUTDescriptor = [4, 0, 12]
    table.LUTData = [0, 4095, 2048, 1024]
    values = np.array([[0, 1, 2, 3]], np.uint16)
    path = write(tmp_path / "a.dcm", values, WindowCenter=1, WindowWidth=2)
    file = pydicom.dcmread(path)
    file.VOILUTSequence = [table]
    file["VOILUTSequence"].value[0]["LUTDescriptor"].VR = "US"
    file["VOILUTSequence"].value[0]["LUTData"].VR = "US"
    file.save_as(path)
    assert grey(path) == [[0, 255, 128, 64]]


def test_8_bits_stay_as_they_are(tmp_path):
    assert grey(write(tmp_path / "a.dcm", np.array([[3, 100]], np.uint8))) == [[3, 100]]


def test_rgb_stays_and_ybr_becomes_rgb(tmp_path):
    colours = np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8)
    np.testing.assert_array_equal(read_image(write(tmp_path / "a.dcm", colours, "RGB")), colours)
    # Full-range YCbCr of red and blue (ITU-R BT.601).
    ybr = np.array([[[76, 85, 255], [29, 255, 107]]], np.uint8)
    np.testing.assert_allclose(read_image(write(tmp_path / "b.dcm", ybr, "YBR_FULL")), colours, atol=2)


def test_the_mark_tells_dicom_without_a_suffix(tmp_path):
    assert grey(write(tmp_path / "IM0001", VALUES)) == [[0, 128, 191, 255]]


def test_a_file_without_pixels_is_named(tmp_path):
    path = write(tmp_path / "report.dcm")
    with pytest.raises(
        ImageFileError, match=r"pixels in the DICOM file .*report\.dcm, got none \(Computed Radiography"
    ):
        read_image(path)


def test_several_frames_are_refused(tmp_path):
    path = write(tmp_path / "a.dcm", VALUES, NumberOfFrames=4)
    with pytest.raises(ImageFileError, match="got 4 frames"):
        read_image(path)


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path):
    path = write(tmp_path / "a.dcm", VALUES, Rows=30_000, Columns=30_000)
    with pytest.raises(ImageFileError, match="got 900,000,000"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"no DICOM at all", bytes(128) + b"DICM"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "a.dcm").write_bytes(content)
    with pytest.raises(ImageFileError, match=r"a\.dcm, got"):
        read_image(tmp_path / "a.dcm")


def test_pixels_that_were_cut_off_are_named(tmp_path):
    path = write(tmp_path / "a.dcm", np.zeros((64, 64), np.uint16))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ImageFileError, match=r"a\.dcm, got"):
        read_image(path)
