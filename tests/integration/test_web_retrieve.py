"""WADO-RS over real sockets: whole instances, metadata, bulk data, frames and pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from db.engine import Database
from tests.receiving import a_slice, part_10
from tests.web_node import ANY, Web, parts_of, web_node

STUDY, SERIES = "1.2.826.0.1.99.1", "1.2.826.0.1.99.1.1"
DICOM = 'multipart/related; type="application/dicom"'
OCTETS = 'multipart/related; type="application/octet-stream"'
PLAIN, IMPLICIT, DEFLATED, RLE, JLS, MULTI, LOSSY, COLOUR, PRIVATE, ENHANCED = range(1, 11)
RAMP: NDArray[np.uint16] = np.arange(256, dtype=np.uint16).reshape(16, 16) * 8


def uid(number: int) -> str:
    return f"{SERIES}.{number}"


def path_of(number: int) -> str:
    return f"/studies/{STUDY}/series/{SERIES}/instances/{uid(number)}"


def ramp(number: int, **values: Any) -> Dataset:
    window: dict[str, Any] = {"WindowCenter": 40, "WindowWidth": 80, "RescaleSlope": 1, "RescaleIntercept": -1000}
    return a_slice(number, **{"PixelData": RAMP.tobytes()} | window | values)


def compressed(number: int, syntax: str) -> bytes:
    dataset = dcmread(BytesIO(part_10(ramp(number))))
    dataset.compress(syntax, generate_instance_uid=False)
    return part_10(dataset, syntax)


def enhanced(number: int) -> Dataset:
    def group(center: float) -> Dataset:
        voi, values, item = Dataset(), Dataset(), Dataset()
        voi.WindowCenter, voi.WindowWidth = center, 80
        values.RescaleSlope, values.RescaleIntercept = 1, -1000
        item.FrameVOILUTSequence, item.PixelValueTransformationSequence = [voi], [values]
        return item

    pixels = np.full((2, 16, 16), 1040, np.uint16)
    window = {"NumberOfFrames": 2, "PerFrameFunctionalGroupsSequence": [group(40), group(1000)]}
    return a_slice(number, PixelData=pixels.tobytes(), **window)


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    folder = tmp_path_factory.mktemp("web")
    database = Database(f"sqlite:///{folder / 'hemonode.db'}")
    database.upgrade()
    jpeg = BytesIO()
    Image.fromarray(np.full((16, 16), 200, np.uint8)).save(jpeg, "JPEG")
    eight_bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    lossy = a_slice(LOSSY, **eight_bits)
    lossy.PixelData = b"\xfe\xff\x00\xe0" + bytes(4) + b"\xfe\xff\x00\xe0"
    stream = jpeg.getvalue() + b"\0" * (len(jpeg.getvalue()) % 2)
    lossy.PixelData += len(stream).to_bytes(4, "little") + stream + b"\xfe\xff\xdd\xe0" + bytes(4)
    lossy["PixelData"].VR = "OB"
    lossy["PixelData"].is_undefined_length = True
    colour = a_slice(
        COLOUR, **eight_bits, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0,
        PixelData=bytes((255, 0, 0)) * 256,
    )  # fmt: skip
    private = ramp(PRIVATE)
    private.add_new(0x00420011, "OB", bytes(range(256)) * 16)
    with web_node(folder, database) as node:
        files = [
            part_10(ramp(PLAIN)), part_10(ramp(IMPLICIT), ImplicitVRLittleEndian),
            part_10(ramp(DEFLATED), DeflatedExplicitVRLittleEndian), compressed(RLE, RLELossless),
            compressed(JLS, JPEGLSLossless),
            part_10(ramp(MULTI, NumberOfFrames=3, PixelData=b"".join((RAMP + n).tobytes() for n in range(3)))),
            part_10(lossy, JPEGBaseline8Bit), part_10(colour), part_10(private), part_10(enhanced(ENHANCED)),
        ]  # fmt: skip
        answer = node.stow(*files)
        assert answer.status_code == 200, answer.text
        yield node
    database.close()


def syntax_of(file: bytes) -> str:
    return str(dcmread(BytesIO(file)).file_meta.TransferSyntaxUID)


def one(web: Web, number: int, accept: str) -> bytes:
    ((_, content),) = parts_of(web.http.get(path_of(number), headers={"Accept": accept}))
    return content


def picture(web: Web, path: str, **parameters: str) -> NDArray[np.uint8]:
    answer = web.http.get(path, params=parameters, headers={"Accept": "image/png"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png"), answer.text
    return np.asarray(Image.open(BytesIO(answer.content)))


def test_dicomweb_client_retrieves_a_study_a_series_and_an_instance(web: Web) -> None:
    client = web.client()
    every = (("application/dicom", "*"),)
    assert len(client.retrieve_study(STUDY, media_types=every)) == 10
    assert len(list(client.iter_series(STUDY, SERIES, media_types=every))) == 10
    assert client.retrieve_instance(STUDY, SERIES, uid(PLAIN)).PixelData == RAMP.tobytes()
    plain = (("application/dicom", ExplicitVRLittleEndian),)
    assert client.retrieve_instance(STUDY, SERIES, uid(RLE), media_types=plain).PixelData == RAMP.tobytes()


@pytest.mark.parametrize("number", [IMPLICIT, RLE, JLS, DEFLATED])
def test_by_default_an_instance_leaves_in_explicit_little_endian_with_the_same_pixels(web: Web, number: int) -> None:
    for accept in (DICOM, "*/*", f"{DICOM}; transfer-syntax={ExplicitVRLittleEndian}"):
        file = one(web, number, accept)
        assert syntax_of(file) == ExplicitVRLittleEndian
        assert dcmread(BytesIO(file)).PixelData == RAMP.tobytes()


def test_as_it_is_stored_where_any_or_its_own_transfer_syntax_is_accepted(web: Web) -> None:
    assert syntax_of(one(web, RLE, ANY)) == RLELossless
    assert one(web, RLE, ANY) == one(web, RLE, f"{DICOM}; transfer-syntax={RLELossless}")


def test_what_was_compressed_with_loss_is_never_recompressed_or_unpacked(web: Web) -> None:
    assert syntax_of(one(web, LOSSY, DICOM)) == JPEGBaseline8Bit
    accept = f"{DICOM}; transfer-syntax={ExplicitVRLittleEndian}"
    assert web.http.get(path_of(LOSSY), headers={"Accept": accept}).status_code == 406


def test_one_instance_may_leave_without_an_envelope(web: Web) -> None:
    answer = web.http.get(path_of(PLAIN), headers={"Accept": "application/dicom; transfer-syntax=*"})
    assert (answer.headers["content-type"], syntax_of(answer.content)) == ("application/dicom", ExplicitVRLittleEndian)
    several = web.http.get(f"/studies/{STUDY}", headers={"Accept": "application/dicom; transfer-syntax=*"})
    assert several.status_code == 406


def test_each_part_says_where_it_is_from(web: Web) -> None:
    parts = parts_of(web.http.get(f"/studies/{STUDY}/series/{SERIES}", headers={"Accept": ANY}))
    assert [head["content-location"] for head, _ in parts] == [f"{web.url}{path_of(n)}" for n in range(1, 11)]


@pytest.mark.parametrize(
    "path", ["/studies/1.2.3", f"/studies/{STUDY}/series/1.2", path_of(99), path_of(1)[:-1] + "99"]
)
def test_what_is_not_there_is_not_found(web: Web, path: str) -> None:
    for suffix in ("", "/metadata"):
        assert web.http.get(path + suffix).status_code == 404


def test_an_instance_of_another_study_is_not_found(web: Web) -> None:
    path = path_of(PLAIN).replace(STUDY, "1.2.3", 1)
    for suffix in ("", "/metadata", "/frames/1", "/rendered", "/bulkdata/7FE00010"):
        assert web.http.get(path + suffix).status_code == 404


def test_metadata_are_the_header_with_addresses_for_large_values(web: Web) -> None:
    told = web.client().retrieve_series_metadata(STUDY, SERIES)
    assert len(told) == 10
    found = next(t for t in told if t["00080018"]["Value"] == [uid(PRIVATE)])
    assert found["00100010"]["Value"] == [{"Alphabetic": "Doe^Jane"}]
    assert found["00080005"]["Value"] == ["ISO_IR 192"]
    for tag, content in (("7FE00010", RAMP.tobytes()), ("00420011", bytes(range(256)) * 16)):
        assert "Value" not in found[tag]
        assert web.client().retrieve_bulkdata(found[tag]["BulkDataURI"]) == [content]
    assert json.loads(web.http.get(f"{path_of(PLAIN)}/metadata").content)[0]["00280010"]["Value"] == [16]


def test_bulk_data_that_is_none_is_not_found(web: Web) -> None:
    assert web.http.get(f"{path_of(PLAIN)}/bulkdata/00420011").status_code == 404
    assert web.http.get(f"{path_of(PLAIN)}/bulkdata/00100010").status_code == 404


def test_dicomweb_client_retrieves_frames(web: Web) -> None:
    frames = web.client().retrieve_instance_frames(STUDY, SERIES, uid(MULTI), [1, 3])
    assert frames == [RAMP.tobytes(), (RAMP + 2).tobytes()]


@pytest.mark.parametrize("number", [PLAIN, IMPLICIT, DEFLATED, RLE, JLS])
def test_frames_leave_as_plain_pixels_whatever_they_are_stored_as(web: Web, number: int) -> None:
    ((head, content),) = parts_of(web.http.get(f"{path_of(number)}/frames/1", headers={"Accept": OCTETS}))
    assert content == RAMP.tobytes()
    assert head["content-type"] == f"application/octet-stream; transfer-syntax={ExplicitVRLittleEndian}"


def test_compressed_frames_leave_as_they_are_stored_where_that_is_accepted(web: Web) -> None:
    for accept, kind in (
        ('multipart/related; type="image/jls"', "image/jls"),
        (f"{OCTETS}; transfer-syntax=*", "application/octet-stream"),
        ("multipart/related; type=image/*; transfer-syntax=*", "image/jls"),
    ):
        ((head, content),) = parts_of(web.http.get(f"{path_of(JLS)}/frames/1", headers={"Accept": accept}))
        assert head["content-type"] == f"{kind}; transfer-syntax={JPEGLSLossless}"
        assert content[:2] == b"\xff\xd8"


def test_a_form_that_cannot_be_had_is_not_acceptable(web: Web) -> None:
    accept = {"Accept": 'multipart/related; type="image/jp2"'}
    assert web.http.get(f"{path_of(JLS)}/frames/1", headers=accept).status_code == 406
    assert web.http.get(f"{path_of(PLAIN)}/rendered", headers={"Accept": "video/mp4"}).status_code == 406
    assert web.http.get(path_of(PLAIN), headers={"Accept": "application/dicom+xml"}).status_code == 406


def test_a_frame_that_is_not_there_is_not_found(web: Web) -> None:
    assert web.http.get(f"{path_of(MULTI)}/frames/4").status_code == 404
    assert web.http.get(f"{path_of(MULTI)}/frames/0").status_code == 400
    assert web.http.get(f"{path_of(MULTI)}/frames/a").status_code == 400


def test_an_image_is_rendered_in_the_window_of_its_header(web: Web) -> None:
    shown = picture(web, f"{path_of(PLAIN)}/rendered")
    values = RAMP.astype(float) - 1000
    expected = np.clip((values - 39.5) / 79 + 0.5, 0, 1) * 255  # PS3.3 C.11.2.1.2.1
    assert np.abs(shown - expected).max() <= 0.5


def test_an_image_is_rendered_in_the_window_that_is_asked_for(web: Web) -> None:
    linear = picture(web, f"{path_of(PLAIN)}/rendered", window="0,2000,linear-exact")
    assert np.abs(linear - np.clip((RAMP.astype(float) - 1000) / 2000 + 0.5, 0, 1) * 255).max() <= 0.5
    sigmoid = picture(web, f"{path_of(PLAIN)}/rendered", window="0,500,sigmoid")
    assert (np.diff(sigmoid.reshape(-1).astype(int)) >= 0).all()
    assert sigmoid[7, 13] == 128  # value 125 * 8 - 1000 is the centre


def test_each_frame_of_an_enhanced_image_has_its_own_window(web: Web) -> None:
    first = picture(web, f"{path_of(ENHANCED)}/frames/1/rendered")
    second = picture(web, f"{path_of(ENHANCED)}/frames/2/rendered")
    assert (int(first[0, 0]), int(second[0, 0])) == (129, 0)


def test_colour_and_lossy_images_are_rendered(web: Web) -> None:
    assert picture(web, f"{path_of(COLOUR)}/rendered")[3, 3].tolist() == [255, 0, 0]
    assert picture(web, f"{path_of(LOSSY)}/rendered", window="128,256,linear-exact")[3, 3] in range(198, 203)


def test_a_picture_fits_its_viewport_and_shows_its_region(web: Web) -> None:
    assert picture(web, f"{path_of(PLAIN)}/rendered", viewport="64,32").shape == (32, 32)
    right = picture(web, f"{path_of(PLAIN)}/rendered", viewport="8,16,8,0,8,16", window="0,2000,linear-exact")
    whole = picture(web, f"{path_of(PLAIN)}/rendered", window="0,2000,linear-exact")
    assert np.array_equal(right, whole[:, 8:])


def test_dicomweb_client_gets_pictures_as_jpeg_by_default(web: Web) -> None:
    answer = web.http.get(f"{path_of(PLAIN)}/rendered", params={"quality": "50"})
    assert answer.headers["content-type"] == "image/jpeg"
    image = web.client().retrieve_instance_rendered(STUDY, SERIES, uid(PLAIN), media_types=("image/png",))
    assert Image.open(BytesIO(image)).size == (16, 16)


@pytest.mark.parametrize(
    "parameters",
    [
        {"window": "1"}, {"window": "a,b,linear"}, {"window": "1,0,linear"}, {"window": "1,2,cubic"},
        {"viewport": "0,10"}, {"viewport": "99999,1"}, {"viewport": "8,8,20,20,4,4"}, {"quality": "0"},
        {"window": "nan,2,linear"},
    ],
)  # fmt: skip
def test_a_look_that_is_none_is_a_bad_request(web: Web, parameters: dict[str, str]) -> None:
    assert web.http.get(f"{path_of(PLAIN)}/rendered", params=parameters).status_code == 400


def test_an_object_without_pixels_has_no_frames(web: Web) -> None:
    without = a_slice(
        77, PixelData=None, Rows=None, Columns=None, StudyInstanceUID="1.2.7", SeriesInstanceUID="1.2.7.1"
    )
    web.holds(without)
    path = f"/studies/1.2.7/series/1.2.7.1/instances/{without.SOPInstanceUID}"
    assert web.http.get(f"{path}/frames/1").status_code == 404
    assert web.http.get(f"{path}/rendered").status_code == 404
    assert "7FE00010" not in web.http.get(f"{path}/metadata").json()[0]


def test_damaged_pixels_are_an_answer_and_not_the_end_of_the_process(tmp_path: Path, database: Database) -> None:
    with web_node(tmp_path, database) as web:
        file = bytearray(compressed(RLE, RLELossless))
        at = file.rindex(b"\xfe\xff\x00\xe0") + 8
        file[at : at + 64] = b"\xff" * 64
        assert web.stow(bytes(file)).status_code == 200
        assert web.http.get(f"{path_of(RLE)}/rendered").status_code == 406
        assert web.http.get(f"{path_of(RLE)}/frames/1", headers={"Accept": OCTETS}).status_code == 406
        assert web.http.get("/studies").status_code == 200


def test_a_file_that_is_gone_is_a_failure_and_not_a_short_answer(tmp_path: Path, database: Database) -> None:
    with web_node(tmp_path, database) as web:
        web.holds(ramp(PLAIN))
        next(web.archive.rglob(f"{uid(PLAIN)}*")).unlink()
        for suffix in ("", "/frames/1", "/rendered"):
            assert web.http.get(path_of(PLAIN) + suffix).status_code == 500


def test_an_answer_that_cannot_be_finished_is_broken_off(tmp_path: Path, database: Database) -> None:
    with web_node(tmp_path, database) as web:
        web.holds(ramp(1), ramp(2))
        next(web.archive.rglob(f"{uid(2)}*")).unlink()
        with pytest.raises(httpx.RemoteProtocolError):
            web.http.get(f"/studies/{STUDY}", headers={"Accept": ANY})
        with pytest.raises(httpx.RemoteProtocolError):
            web.http.get(f"/studies/{STUDY}/metadata")
        assert web.http.get("/studies").status_code == 200
