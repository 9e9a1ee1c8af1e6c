"""What a check finds: its kinds, how bad they are, why they matter and what mends them."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path

from pixart.data.pairs import InFile, Location

DROPPED, ATTENTION, NOTE = "dropped", "attention", "note"
EXAMPLES = 8  # of each kind

CAPTION = "pixart data caption PATH --model llava-hf/llava-1.5-7b-hf"
LIST = "pixart data check PATH --list findings.jsonl"

# Kinds that the readers do not explain themselves: level, why it matters, and the command that mends it, in which PATH
# is the data set and FILE the first example's image.
KINDS: dict[str, tuple[str, str, str | None]] = {
    "narrow": (ATTENTION, "Even the nearest bucket would crop away more than half. Crop them by hand.", LIST),
    "crop": (
        ATTENTION,
        "Their buckets crop away more than a quarter; a crop can keep the part with most detail.",
        "pixart data extract PATH PATH-features --crop clever",
    ),
    "small": (ATTENTION, "They would be enlarged and teach blur; choose a smaller --base-size.", None),
    "duplicate": (ATTENTION, "The same pixels again: trained on more often, and soon known by heart.", LIST),
    "near-duplicate": (ATTENTION, "Nearly the same image: another size, saved again, retouched.", LIST),
    "caption-cut": (
        ATTENTION,
        "Longer than the text encoder reads: the last words count neither in training nor in generating.",
        f'{CAPTION} --question "Describe this image in one sentence."',
    ),
    "label-only": (NOTE, "A class and no caption: enough for stage 1; stages 2 and 3 need captions.", CAPTION),
    "declared-size": (ATTENTION, "The data set states another size; the image's own counts.", None),
    "alpha": (NOTE, "Transparent images are put on white.", None),
    "rotated": (NOTE, "Images are turned upright as EXIF says.", None),
    "animated": (NOTE, "Only the first frame is used.", None),
    "converted": (NOTE, "Unusual colour modes are converted to RGB with 8 bits per channel.", None),
    "profile": (NOTE, "Colour profiles are not applied.", None),
}
FIXES = {
    "format": "magick FILE FILE.png",
    "mode": "magick FILE -colorspace sRGB -depth 8 FILE.png",
    "bomb": 'magick FILE -resize "4096x4096>" FILE.png',
    "unreadable": "chmod u+r FILE",
    "caption-unreadable": LIST,
}


@dataclass(frozen=True)
class Example:
    """One image: `text` says what is wrong with it; `same_as` is the image that it repeats."""

    key: str
    text: str
    place: Location | None = None
    same_as: "Example | None" = None


@dataclass
class Finding:
    """One kind of problem, found `count` times."""

    kind: str
    level: str
    count: int = 0
    examples: list[Example] = field(default_factory=list)

    @property
    def why(self) -> str:
        """Empty for what each example explains itself."""
        return KINDS[self.kind][1] if self.kind in KINDS else ""

    def fix(self, data: Path) -> str | None:
        """The command that mends it, ready for a shell."""
        fallback = FIXES.get(self.kind, CAPTION if self.kind.startswith("caption-") else LIST)
        fix = KINDS[self.kind][2] if self.kind in KINDS else fallback
        file = next((example.place.path for example in self.examples if isinstance(example.place, InFile)), None)
        if fix is None or ("FILE" in fix and file is None):  # inside a shard no other program reaches it
            return None
        words = {"PATH": data, "PATH-features": f"{data}-features", "FILE": file, "FILE.png": f"{file}.png"}
        return " ".join(shlex.quote(str(words[word])) if word in words else word for word in fix.split(" "))


def level_of(kind: str) -> str:
    return KINDS[kind][0] if kind in KINDS else ATTENTION
