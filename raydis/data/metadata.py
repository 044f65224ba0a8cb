"""What a picture's file holds beside pixels: left out before it is decoded, because it breaks and inflates on its own.

Text of 3 MB, a colour profile, or EXIF with a wrong offset makes decoders refuse a picture whose pixels are sound. Only
the orientation in EXIF means something here, and it is read by itself.
"""

from __future__ import annotations

import struct

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8\xff"
ANCILLARY = 0x20  # bit of the first letter of a PNG chunk's type: not needed for the pixels
EXIF_HEADER = b"Exif\0\0"
ORIENTATION_TAG = 0x0112

_JPEG_APP0, _JPEG_APP1, _JPEG_APP14, _JPEG_APP15, _JPEG_COMMENT = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
_JPEG_COLOUR_BYTES = {_JPEG_APP0: 16, _JPEG_APP14: 14}  # least length of the two that tell the colour space
_JPEG_SCAN, _JPEG_FILL = 0xDA, 0xFF


def without_metadata(data: bytes) -> tuple[bytes, bytes]:
    """Take what is not needed for the pixels out of a PNG or JPEG file; other files stay as they are.

    Args:
        data: a picture's file, which may be damaged: from there on it stays as it is.

    Returns:
        The file without metadata, and its block of EXIF, empty where there is none.
    """
    if data.startswith(PNG_SIGNATURE):
        return _bare_png(data)
    if data.startswith(JPEG_SIGNATURE):
        return _bare_jpeg(data)
    return data, b""


def orientation(exif: bytes) -> int:
    """The orientation, 1 to 8, in a block of EXIF; 1, upright, where it has none or cannot be read."""
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
    except struct.error:  # an offset that leaves the block
        pass
    return 1


def _bare_png(data: bytes) -> tuple[bytes, bytes]:
    """Critical chunks and transparency. A chunk is length, type, content and checksum."""
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
    """Everything but comments and the segments of applications, of which two tell the colour space."""
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
