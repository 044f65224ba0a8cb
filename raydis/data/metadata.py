"""Remove the metadata of PNG and JPEG files before they are decoded, because errors in it would make decoding fail.

A text of 3 MB, a damaged colour profile, or EXIF data with a wrong offset makes decoders refuse a picture whose pixels
are intact. Only the orientation in the EXIF data matters here. It is read separately.
"""

from __future__ import annotations

import struct

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8\xff"
ANCILLARY = 0x20  # bit in the first letter of the type of PNG chunks that are not needed for the pixels
EXIF_HEADER = b"Exif\0\0"
ORIENTATION_TAG = 0x0112

_JPEG_APP0, _JPEG_APP1, _JPEG_APP14, _JPEG_APP15, _JPEG_COMMENT = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
_JPEG_COLOUR_BYTES = {_JPEG_APP0: 16, _JPEG_APP14: 14}  # least length of the two that determine the colour space
_JPEG_SCAN, _JPEG_FILL = 0xDA, 0xFF


def without_metadata(data: bytes) -> tuple[bytes, bytes]:
    """Remove everything that is not needed for the pixels from a PNG or JPEG file. Other files stay as they are.

    Args:
        data: contents of a picture file. If it is damaged, it stays as it is from the damage on.

    Returns:
        The file without metadata, and its EXIF block, which is empty if there is none.
    """
    if data.startswith(PNG_SIGNATURE):
        return _bare_png(data)
    if data.startswith(JPEG_SIGNATURE):
        return _bare_jpeg(data)
    return data, b""


def orientation(exif: bytes) -> int:
    """Return the orientation, 1 to 8, in an EXIF block; 1 (upright) if there is none or it cannot be read."""
    exif = exif.removeprefix(EXIF_HEADER)
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", exif, entry)
            if tag == ORIENTATION_TAG:
                (value,) = struct.unpack_from(order + ("I" if kind == 4 else "H"), exif, entry + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:  # an offset points outside of the block
        pass
    return 1


def _bare_png(data: bytes) -> tuple[bytes, bytes]:
    """Return a PNG file with its critical chunks and transparency only, and its EXIF block.

    A chunk consists of length, type, content and checksum.
    """
    kept, exif, position = [PNG_SIGNATURE], b"", len(PNG_SIGNATURE)
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if kind == b"eXIf":
            exif = data[position + 8 : end - 4]
        if kind == b"tRNS" or not kind[0] & ANCILLARY:
            kept.append(data[position:end])
        position = end
        if kind == b"IEND":
            break
    return b"".join(kept), exif


def _bare_jpeg(data: bytes) -> tuple[bytes, bytes]:
    """Return a JPEG file without comments and application segments, and its EXIF block.

    Two application segments are kept, because they determine the colour space.
    """
    kept, exif, position = [data[:2]], b"", 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != _JPEG_SCAN:
        marker = data[position + 1]
        if marker == _JPEG_FILL:
            position += 1
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        end = position + 2 + length
        if marker == _JPEG_APP1 and not exif and data.startswith(EXIF_HEADER, position + 4):
            exif = data[position + 4 : end]
        is_metadata = marker == _JPEG_COMMENT or _JPEG_APP0 <= marker <= _JPEG_APP15
        if not is_metadata or length >= _JPEG_COLOUR_BYTES.get(marker, length + 1):
            kept.append(data[position:end])
        position = end
    return b"".join([*kept, data[position:]]), exif
