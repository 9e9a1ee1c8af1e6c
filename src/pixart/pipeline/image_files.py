"""Image files: PNG, JPEG or WebP with every setting inside, under a free name, written completely or not at all."""

import contextlib
import hashlib
import io
import json
import os
import re
import tempfile
import unicodedata
from pathlib import Path
from typing import Any, BinaryIO

from pixart.checkpoints.hashes import SAMPLED
from pixart.diffusion.solvers import SAMPLERS
from pixart.errors import PixArtError, UsageError, reason_of
from pixart.files import parse_json, write_whole
from pixart.pipeline.image_metadata import ImageTexts, read_texts
from pixart.pixels import on_white

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
OTHER_FORMATS = {".gif", ".bmp", ".tif", ".tiff", ".svg", ".avif", ".pdf"}
EXIF_FOLDER, USER_COMMENT, IMAGE_DESCRIPTION = 0x8769, 0x9286, 0x010E
CHUNK = "pixart"
# The mark that a machine made the image: a code of the IPTC Photo Metadata Standard (Digital Source Type), in
# XMP. It names neither a person nor the prompt.
XMP_KEYWORD = "XML:com.adobe.xmp"
AI_MADE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
XMP = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
   <Iptc4xmpExt:DigitalSourceType>{AI_MADE}</Iptc4xmpExt:DigitalSourceType>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""


def plan_output(output: str | Path | None, prompt: str, seed: int) -> Path:
    """The path to write to, before looking for a free name.

    `output` may be a file (.png, .jpg, .jpeg or .webp), a folder, or None for the current folder; in a folder the file
    is a PNG, called after the prompt and the seed. Raises UsageError for another image format, or no possible name.
    """
    if "\0" in str(output):
        raise UsageError("The output path has a NUL character in it, which no file name can have.")
    name = f"{slug(prompt)}-{seed}.png"
    if output is None:
        return Path(name)
    path = Path(output)
    if os.path.isdir(path) or str(output).endswith(("/", os.sep)):
        return path / name
    if path.suffix.lower() in OTHER_FORMATS:
        raise UsageError(f"Images are written as PNG, JPEG or WebP, not {path.suffix}; give such a name, or a folder.")
    return path if path.suffix.lower() in FORMATS else path / name


def slug(prompt: str) -> str:
    """A short file name for a prompt: letters and digits, hyphens between."""
    plain = unicodedata.normalize("NFKC", prompt).lower()
    words = re.sub(r"[^\w]+|_+", "-", plain).strip("-")
    # At most 60 characters and, for scripts of several bytes a letter, well under the usual 255 bytes of a file name.
    return words[:60].encode()[:180].decode(errors="ignore").strip("-") or "image"


def check_output(path: Path) -> None:
    """Make the folder and try to write in it, so that a person hears about it before the work, not after."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            path.lstat()  # a name that is too long fails here
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except (FileExistsError, NotADirectoryError):
        raise PixArtError(f"The image cannot be written to {path}: {path.parent} is not a folder.") from None
    except OSError as error:
        raise PixArtError(f"The image cannot be written to {path}: {reason_of(error)}.") from None


def write_image(image, settings: dict[str, Any] | None, path: Path, *, metadata: bool = True) -> Path:
    """Write an RGB or RGBA PIL image with its settings and return the path used: `path`, or a free name beside it.

    PNG, JPEG (quality 95) or WebP (lossless), by the suffix. An existing file is never overwritten: name.png,
    name-1.png, name-2.png, ... is tried in turn. The image takes its name only when all of it is on disk.

    Args:
        settings: None for sheets of several images, which have no settings of their own but are marked as AI-made.
        metadata: False leaves out the settings, their copy for other tools, and the mark that the image is AI-made.

    Raises:
        UsageError: JPEG has no transparency. PixArtError: the disk refuses.
    """
    kind = FORMATS[path.suffix.lower()]
    if kind == "JPEG" and image.mode != "RGB":
        raise UsageError("JPEG has no transparency; write a .png or .webp file.")
    buffer = io.BytesIO()
    try:
        save_image(buffer, image, settings, kind, metadata=metadata)
        target = _take_free_name(path)
        try:
            write_whole(target, buffer.getvalue())
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        return target
    except (OSError, ValueError) as error:  # ValueError: more metadata than a JPEG segment holds
        raise PixArtError(f"The image cannot be written to {path}: {reason_of(error)}.") from None


def save_image(
    file: BinaryIO,
    image,
    settings: dict[str, Any] | None,
    kind: str,
    *,
    quality: int | None = None,
    metadata: bool = True,
) -> None:
    """What `write_image` writes, into an open file. `kind` is PNG, JPEG or WEBP; `quality` 0 to 100 of JPEG and WebP.

    Raises:
        ValueError: more metadata than the format holds.
    """
    options: dict[str, Any] = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True, "exact": True}}.get(kind, {})
    if quality is not None and kind != "PNG":
        options = {"quality": quality}
    if metadata:
        record = None if settings is None else {**settings, "pixels_sha256": pixel_hash(image)}
        options |= {"pnginfo": _png_texts(record)} if kind == "PNG" else {"exif": _exif(record), "xmp": XMP.encode()}
    image.save(file, format=kind, **options)


def _png_texts(record: dict[str, Any] | None):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if record is not None:
        info.add_text("parameters", parameters_text(record))
        info.add_text(CHUNK, json.dumps(record))
    info.add_itxt(XMP_KEYWORD, XMP)
    return info


def _exif(record: dict[str, Any] | None) -> bytes:
    """As other tools write JPEG and WebP: `parameters` is the UserComment; ours is an image description."""
    from PIL import Image

    exif = Image.Exif()
    if record is not None:
        exif.get_ifd(EXIF_FOLDER)[USER_COMMENT] = b"UNICODE\0" + parameters_text(record).encode("utf-16-be")
        exif[IMAGE_DESCRIPTION] = f"{CHUNK}:{json.dumps(record)}"  # JSON of ASCII characters
    return exif.tobytes()


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings that `write_image` put into an image file; raises PixArtError where there are none.

    They are what the file says: nothing in them is checked. `pixart.pipeline.restore` does that.
    """
    record = read_record(read_texts(path))
    if record is None:
        raise PixArtError(f"{path} holds no settings of pixart.")
    return record


def read_record(texts: ImageTexts) -> dict[str, Any] | None:
    """Our JSON record among the texts of an image file, or None; raises PixArtError if it is damaged."""
    if CHUNK not in texts.texts:
        return None
    record = parse_json(texts.texts[CHUNK], "The text that pixart wrote into the image", nonfinite=True)
    if not isinstance(record, dict):
        raise PixArtError("The settings that pixart wrote are damaged (they are not a JSON object).")
    return record


def pixel_hash(image) -> str:
    """SHA-256 of the raw RGB bytes, row by row; of an image with transparent parts, as it looks on white."""
    return hashlib.sha256(on_white(image).tobytes()).hexdigest()


def parameters_text(record: dict[str, Any]) -> str:
    """The settings as the `parameters` text that other image tools read: a courtesy copy, ours is the JSON chunk."""
    lines = [record["resolved_prompt"]]
    if record["resolved_negative_prompt"]:
        lines.append("Negative prompt: " + record["resolved_negative_prompt"])
    pairs = {
        "Steps": record["steps"],
        "Sampler": SAMPLERS[record["sampler"]].title if record["sampler"] in SAMPLERS else record["sampler"],
        "CFG scale": f"{record['guidance_scale']:g}",
        "Seed": record["seed"],
        "Size": f"{record['width']}x{record['height']}",
        "Model hash": record["model_hash"].removeprefix(SAMPLED)[:10],
        "Model": record["model"],
        "Version": f"pixart {record['versions']['pixart']}",
    }
    # The readers of this text take an empty value for a damaged one.
    lines.append(", ".join(f"{key}: {_quoted(str(value))}" for key, value in pairs.items() if str(value).strip()))
    # A folder's name may hold bytes that are no text, which no PNG can.
    return "\n".join(lines).replace("\0", "").encode(errors="replace").decode()


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ',:\n"') else value


def _take_free_name(path: Path) -> Path:
    """An empty file under `path` or a free name beside it, which nobody else can take any more."""
    target, number = path, 0
    while True:
        try:
            target.touch(exist_ok=False)
            return target
        except FileExistsError:
            number += 1
            target = path.with_stem(f"{path.stem}-{number}")
