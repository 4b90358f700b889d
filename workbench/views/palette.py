"""How techniques look, the same in every figure: a hue for a family, a fill for what is added, a symbol for a pipeline.

The hues are told apart by readers with normal sight, and with protanopia, deuteranopia or tritanopia (simulated after
Machado, Oliveira & Fernandes 2009), by at least 0.06 in Oklab within the safety techniques and within the contrastive
ones; where two share a hue, fills differ. Each keeps a contrast of 3:1 on the white page and on the dark one.
"""

import functools
import re
import zlib
from collections.abc import Mapping
from itertools import product
from typing import NamedTuple

from .theme import DOMAINS


class Family(NamedTuple):
    """What techniques of one kind share: a colour, a fill, and the words that name them."""

    colour: str
    pattern: str
    fill: str = ""


_CONFLICT, _MERGE, _UPDATE, _PLAIN = "#979761", "#C87F06", "#597A1C", "#808080"
# A combination takes the look of the part that comes first here: "gradient projection + restore" is a restore,
# "replay + merge" a replay, "parting + KL" a parting.
FAMILIES = {
    "restore": Family("#0872DC", r"restor"),
    "metric_projection": Family(_UPDATE, r"metric.*(proj|side)|proj.*metric|update.*adam", "-open"),
    "update_projection": Family(_UPDATE, r"update.*(proj|side)"),
    "pcgrad": Family(_CONFLICT, r"pcgrad", "-dot"),
    "safegrad": Family(_CONFLICT, r"safegrad", "-open-dot"),
    "conflict": Family(_CONFLICT, r"conflict|\ba.?gem\b|surgery"),
    "gem": Family(_CONFLICT, r"\bgem\b", "-open"),
    "gradient_projection": Family("#D83910", r"(?<!no )(?<!without )proj|ogpsa|gradient side"),
    "null_space": Family("#955481", r"null ?space|\bgpm\b|nspo|activation"),
    "mixup": Family("#089123", r"mix.?up"),
    "replay": Family("#BB77BF", r"replay|mixing"),
    "sentence_debias": Family("#A44B00", r"sentence ?debias"),
    "printed": Family("#FC3A8D", r"\bprinted"),
    "cda": Family("#63A543", r"\bcda\b|counterfactual"),
    "instruction": Family("#3C69D3", r"\binstruct|system prompt"),
    "predicting": Family("#8876FF", r"\bpredicting"),
    "positives": Family("#A0741B", r"\bpositives?\b"),
    "infonce": Family("#CE1153", r"info ?nce"),
    "filtered": Family("#0E88C5", r"\bfilter(ed)?\b"),
    "parting": Family("#C20F9F", r"\bparting"),
    "unlikelihood": Family("#8A5773", r"unlikelihood"),
    "likelihood": Family("#7431FB", r"likelihood|contrastive"),
    "kl": Family("#2C9CE1", r"\bkl\b"),
    "ewc": Family("#8557B7", r"\bewc\b|elastic"),
    "confidence": Family("#14744F", r"confiden|consft"),
    "lora": Family("#F6469B", r"\blora\b"),
    "hma": Family(_MERGE, r"\bhma\b|(merg|averag).*\blayers?\b", "-open"),
    "merge": Family(_MERGE, r"merg|interpol|averag"),
    "frozen": Family(_PLAIN, r"frozen|freez", "-open"),
    "noise": Family(_PLAIN, r"noise|neftune", "-dot"),
    "plain": Family(_PLAIN, r"plain|naive|standard|cross.?entropy|\b(no|without) "),
}
SPARE = ("#5F8A2F", "#A65FB0", "#B5654A", "#5A7FC0")  # for techniques of no known family
# Beside its family, what a technique does to fewer weights or with another scale is open; what it adds is dotted.
OPEN = r"\blora\b|frozen|freez|attention|dynamic|scaled"
DOTTED = r"noise|neftune|merg|interpol|\bkl\b"
DARK, LIGHT = r"attention", r"\blora\b|positives"
FILLS = ("", "-open", "-dot", "-open-dot")
DASHES = dict(zip(FILLS, ("solid", "dash", "dot", "dashdot"), strict=True))
SHADES = (0.0, 0.42, -0.38, 0.62, -0.58)  # share of white (positive) or black mixed in
SYMBOLS = {"sft": "circle", "dpo": "square", "sft→dpo": "diamond", "contrastive": "triangle-up"}


class Style(NamedTuple):
    """How one group is drawn.

    Attributes:
        colour: `#RRGGBB`.
        dash: Of its lines.
        fill: Of its marks, to follow the name of a symbol: "" is solid; "-open", "-dot", "-open-dot".
    """

    colour: str
    dash: str
    fill: str = ""

    def symbol(self, pipeline: object = "sft") -> str:
        """The mark of its runs of one pipeline."""
        return symbol_of(pipeline) + self.fill


@functools.cache  # a table of runs asks for each hundreds of times
def family_of(technique: str) -> str:
    """The family that a technique or a label belongs to; its own words where no family is known."""
    words = _words(technique)
    return next((name for name, family in FAMILIES.items() if re.search(family.pattern, words)), words)


def colour_of(technique: str) -> str:
    """The colour of a technique's family as `#RRGGBB`, the same in every figure whatever else is drawn."""
    family = family_of(technique)
    return FAMILIES[family].colour if family in FAMILIES else SPARE[_number(family) % len(SPARE)]


def family_or(technique: str, label: str) -> str:
    """What shapes a run: its technique, or a label that names a family, where the technique is plain, KL or GEM.

    Training on filtered data, or with a contrastive loss, is told apart by its label alone, and so is A-GEM, GEM with
    one reference.
    """
    return label if family_of(technique) in ("plain", "kl", "gem") and family_of(label) in FAMILIES else technique


def symbol_of(pipeline: object) -> str:
    """The marker of a pipeline: circle for SFT, square for DPO, diamond for SFT→DPO, triangle for contrastive training.

    A hexagon stands for every other; where no pipeline is told apart, "" is a circle.
    """
    name = re.sub(r"\s*(->|→|\+|,)\s*", "→", str(pipeline).lower().strip())
    return SYMBOLS.get(name, "hexagon" if name else "circle")


def style_of(technique: str, label: str = "") -> Style:
    """The look of a technique, from its words and those of its label alone."""
    family = family_of(technique)
    if family not in FAMILIES:
        number = _number(family)
        fill = FILLS[number // len(SPARE) % len(FILLS)]
        return Style(SPARE[number % len(SPARE)], DASHES[fill], fill)
    # What is said beside the family: the LoRA of "LoRA, replay" changes a replay, that of "LoRA" is the family.
    rest = re.sub(FAMILIES[family].pattern, " ", f"{_words(technique)} , {_words(label)}")
    own = FAMILIES[family].fill
    is_open = "open" in own or re.search(OPEN, rest)
    is_dotted = "dot" in own or re.search(DOTTED, rest)
    fill = "-open" * bool(is_open) + "-dot" * bool(is_dotted)
    share = SHADES[2] if re.search(DARK, rest) else SHADES[1] if re.search(LIGHT, rest) else SHADES[0]
    return Style(_shaded(FAMILIES[family].colour, share), DASHES[fill], fill)


def styles(techniques: Mapping[str, str]) -> dict[str, Style]:
    """The look of each label, given the technique it is a setting of.

    Each is that of `style_of`, whatever else is drawn. Only settings of one technique, which words alone do not tell
    apart (a rank, a rate), differ by shade and fill in the order of their names; the first keeps the look. Where all
    that is drawn are settings of plain training (doses, say), grey would tell them from nothing: they take hues.
    """
    if len(techniques) > 1 and {family_of(technique) for technique in techniques.values()} == {"plain"}:
        hues = product(DASHES.values(), DOMAINS)
        return {label: Style(hue, dash) for label, (dash, hue) in zip(sorted(techniques), hues, strict=False)}
    looks: dict[str, Style] = {}
    wanted = {label: style_of(techniques[label], label) for label in sorted(techniques)}
    first = {style: label for label, style in reversed(wanted.items())}
    taken = {*first}
    for label, style in wanted.items():
        looks[label] = style if first[style] == label else _another(style, taken)
        taken.add(looks[label])
    return looks


def _another(style: Style, taken: set[Style]) -> Style:
    """A setting's look: the first free fill and shade of its technique, the same again where none is."""
    fills = [style.fill, *(fill for fill in FILLS if fill != style.fill)]
    for share, fill in product(SHADES, fills):
        look = Style(_shaded(style.colour, share), DASHES[fill], fill)
        if look not in taken:
            return look
    return style


def _words(name: str) -> str:
    return re.sub(r"[_\-]+", " ", str(name).lower())


def _number(family: str) -> int:
    """A checksum, since `hash` differs between processes: an unknown technique keeps its look too."""
    return zlib.crc32(family.encode())


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def faded(colour: str, opacity: float) -> str:
    """`#RRGGBB` as an rgba colour."""
    return f"rgba({','.join(map(str, _channels(colour)))},{opacity:g})"


def _shaded(colour: str, share: float) -> str:
    """A colour lightened or darkened as far as it stays at 2:1 or more from the white page and from the dark one."""
    goal = 255 if share > 0 else 0
    while True:
        channels = [round(c + (goal - c) * abs(share)) for c in _channels(colour)]
        linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in channels]
        if abs(share) < 0.05 or 0.07 <= 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] <= 0.47:
            return "#" + "".join(f"{c:02X}" for c in channels)
        share *= 0.9
