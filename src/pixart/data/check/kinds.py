"""Every kind of finding: what it is called, how bad it is, why it matters, and what to do about it."""

from dataclasses import dataclass

ATTENTION, NOTE, DROPPED = "attention", "note", "dropped"

_CAPTION = "pixart data caption PATH --model llava-hf/llava-1.5-7b-hf"
_ASIDE = "pixart data check PATH --set-aside PATH-aside"
_LIST = "pixart data check PATH --list findings.jsonl"


@dataclass(frozen=True)
class Kind:
    """`fix` is a command, in which PATH stands for the data set and FILE for the first example's picture."""

    title: str
    why: str
    fix: str | None = None
    level: str = ATTENTION


KINDS = {
    # Pictures that cannot be used: the kinds of pixart.data.pairs and pixart.data.images.
    "missing": Kind(
        "Pictures that are not there",
        "The data set names them, and there is no such file. All names are in the list.",
        _LIST,
    ),
    "empty": Kind("Empty picture files", "They have no bytes; a download or a copy failed.", _ASIDE),
    "truncated": Kind("Pictures that end too early", "A download or a copy was cut short. Fetch them again.", _ASIDE),
    "broken": Kind("Damaged pictures", "They cannot be decoded. Fetch them again.", _ASIDE),
    "crash": Kind("Pictures that kill the decoder", "Nothing good can be done with them.", _ASIDE),
    "format": Kind(
        "Files of other formats", "PNG, JPEG, WebP, GIF, BMP, TIFF and AVIF are read.", "magick FILE FILE.png"
    ),
    "bomb": Kind(
        "Decompression bombs",
        "Far more pixels than anyone needs; decoding them would fill the memory.",
        'magick FILE -resize "4096x4096>" FILE.png',
    ),
    "mode": Kind(
        "Colours that cannot be read",
        "It is not known what is white in them.",
        "magick FILE -colorspace sRGB -depth 8 FILE.png",
    ),
    "unreadable": Kind("Files that cannot be opened", "The system refuses to read them.", "chmod u+r FILE"),
    "not-a-file": Kind("Folders, pipes or devices in place of pictures", "Only regular files are read.", _LIST),
    "too-large": Kind("Files too large to be pictures", "They are not read at all.", _LIST),
    "narrow": Kind(
        "Pictures too narrow for any bucket",
        "Even the nearest bucket would crop away more than half of what the caption names. Crop them by hand.",
        _ASIDE,
    ),
    "row": Kind("Rows that cannot be read", "A line that is damaged, or not of the form of the others.", _LIST),
    "row-encoding": Kind("Rows that are not UTF-8", "Save the manifest as UTF-8.", _LIST),
    "no-image": Kind("Rows that name no picture", "There is nothing to open.", _LIST),
    "url": Kind(
        "Web addresses in place of files", "Nothing is fetched here; img2dataset fetches them and writes shards.", _LIST
    ),
    "path": Kind("Paths that leave the data set", "Only what lies inside it is read.", _LIST),
    "link": Kind("Links that loop", "They lead to themselves.", _LIST),
    "name-encoding": Kind("File names that are not UTF-8", "Rename them; nothing else can name them.", _LIST),
    "duplicate-row": Kind("Pictures that two rows name", "The first row counts.", _LIST),
    "duplicate-sample": Kind("Samples that a shard holds twice", "The first one counts.", _LIST),
    "same-stem": Kind(
        "Pictures that share one caption file", "Whose caption is it? Rename one of the two pictures.", _LIST
    ),
    "split-sample": Kind("Samples that are spread over two shards", "Keep the files of a sample together.", _LIST),
    "several-images": Kind("Samples with several pictures", "Which one is meant cannot be known.", _LIST),
    "sample": Kind("Samples of too many files", "A sample has a picture and a few texts.", _LIST),
    "download-failed": Kind("Pictures that could not be downloaded", "img2dataset wrote down that it failed.", _LIST),
    "damaged-tar": Kind("Damaged shards", "What lies behind the damage is lost. Fetch them again.", _LIST),
    "no-end": Kind("Shards that end too early", "Fetch them again; the rest of them is used.", _LIST),
    "after-end": Kind("Shards that go on behind their end", "What lies behind the end is not read.", _LIST),
    "no-class": Kind("Pictures outside the class folders", "Put each into the folder of its class.", _LIST),
    # Captions.
    "caption-missing": Kind(
        "Pictures without a caption", "Training on text needs one; a model can write it.", _CAPTION
    ),
    "caption-empty": Kind("Empty captions", "There is nothing in them but spaces; a model can write some.", _CAPTION),
    "caption-encoding": Kind("Captions that are not UTF-8", "Save them as UTF-8, or have them written anew.", _CAPTION),
    "caption-nul": Kind("Captions with NUL bytes", "These are no texts; they can be written anew.", _CAPTION),
    "caption-long": Kind("Captions far too long to be captions", "They are not read at all.", _CAPTION),
    "caption-type": Kind("Captions that are no texts", "Numbers, lists or objects stand in their place.", _CAPTION),
    "caption-unreadable": Kind("Caption files that cannot be read", "The system refuses to open them.", _LIST),
    "caption-cut": Kind(
        "Captions longer than the text encoder reads",
        "Their last words are cut off, in training as in drawing. Shorter ones can be written.",
        _CAPTION + ' --question "Describe this image in one sentence."',
    ),
    "caption-common": Kind(
        "Captions that many pictures share",
        "A text that goes with everything teaches nothing; captions that say what is there can be written.",
        _CAPTION,
    ),
    "label-only": Kind(
        "Pictures with a class and no caption",
        "Good for stage 1, which learns pixels from classes; stages 2 and 3 need captions.",
        _CAPTION,
        NOTE,
    ),
    # Pictures that can be used, but.
    "duplicate": Kind(
        "Duplicates", "The same pixels again: such pictures are drawn more often and soon known by heart.", _ASIDE
    ),
    "near-duplicate": Kind(
        "Near duplicates",
        "Nearly the same picture: another size, saved again, retouched. Look at them, and decide.",
        _LIST,
    ),
    "small": Kind("Pictures smaller than their bucket", "They would be enlarged, and teach blur.", None),
    "crop": Kind(
        "Much is cropped away",
        "A good part of what there is to see falls outside the buckets; cropping can keep the part with most detail.",
        "pixart data extract PATH PATH-features --crop clever",
    ),
    "thin-bucket": Kind(
        "Buckets smaller than a batch", "The same picture comes more than once in their batches.", None, NOTE
    ),
    "declared-size": Kind(
        "Sizes that the data set states wrongly", "What was found in the pictures is used, not what is stated.", None
    ),
    # What is done with pictures, and need not be repaired.
    "alpha": Kind("Transparent pictures", "They are put on white.", None, NOTE),
    "rotated": Kind("Pictures turned by EXIF", "They are turned upright before anything else.", None, NOTE),
    "animated": Kind("Animated pictures", "Only their first frame is used.", None, NOTE),
    "converted": Kind("Unusual colour modes", "They are converted to RGB with 8 bits per channel.", None, NOTE),
    "profile": Kind("Colour profiles", "They are not applied: colours may look a little different.", None, NOTE),
}


def kind_of(name: str) -> Kind:
    """What is known of a kind; a reader may have kinds of its own, which speak for themselves."""
    title = name.replace("-", " ").capitalize()
    return KINDS.get(name, Kind(title, "Each one says what is wrong with it.", _LIST))
