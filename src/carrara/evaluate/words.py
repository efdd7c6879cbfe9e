"""What a figure is called, and how it is written: the same on the command line, on pages and in model cards.

A figure never stands alone: beside it are its interval or its mark, and with a Frechet distance the reference set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from carrara.evaluate.plot import number

__all__ = ["Word", "ordered", "reference_words", "value_words", "word"]


class Word(NamedTuple):
    """A figure for people: what it is called, what it is times, in which unit, whether more is better, what it says."""

    label: str
    times: float = 1.0
    unit: str = ""
    better: int = 0  # 1: more, -1: less, 0: neither
    about: str = ""


_KNOWN = {  # in the order in which they are told
    "psnr_db": Word("PSNR", 1, "dB", 1, "peak signal to noise of a picture that was encoded and decoded, on average"),
    "above_bicubic_db": Word("PSNR above bicubic", 1, "dB", 1, "what the decoder adds to enlarging the small picture"),
    "ssim": Word("SSIM", 1, "", 1, "structural similarity to what was given; 1 is equal"),
    "reconstruction_fd": Word(
        "reconstruction FD-{}", 1, "", -1, "Frechet distance of what came back to what was given; 0 is equal"
    ),
    "vocabulary_used": Word("vocabulary in use", 100, "%", 1, "tokens that occur in these pictures"),
    "perplexity": Word("perplexity", 1, "", 1, "of the tokens' use: so many, used alike, would carry as much"),
    "kid": Word("KID-{}, x 1000", 1000, "", -1, "kernel distance to the reference, without bias; 0 is equal"),
    "fd": Word("FD-{}", 1, "", -1, "Frechet distance to the reference; the fewer pictures, the greater"),
    "prompt_fidelity_top1": Word(
        "prompt fidelity", 100, "%", 1, "the nearest reference picture, by pixels at 32 x 32, is one of the prompt"
    ),
    "prompt_fidelity_top1_contrastive": Word(
        "prompt fidelity, contrastive", 100, "%", 1, "the same, as the contrastive picture encoder sees it"
    ),
    "prompt_fidelity_top1_by": Word("prompt fidelity, {}", 100, "%", 1, "the same, as this network sees it"),
    "retrieval_top1": Word("retrieval, first", 100, "%", 1, "of all samples its own fits a prompt best"),
    "retrieval_top5": Word("retrieval, first five", 100, "%", 1, "its own is among the five that fit best"),
    "clip_score": Word("CLIP score", 1, "", 1, "100 times the cosine of picture and prompt"),
    "cmmd": Word("CMMD", 1, "", -1, "CLIP's maximum mean discrepancy to the reference"),
    "precision": Word("precision", 1, "", 1, "samples that lie among reference pictures"),
    "recall": Word("recall", 1, "", 1, "reference pictures that lie among samples"),
    "density": Word("density", 1, "", 1, "how densely reference pictures lie about a sample"),
    "coverage": Word("coverage", 1, "", 1, "reference pictures with a sample about them"),
    "class_score": Word("class score (IS), {}", 1, "", 1, "sure and varied, as the network's classes say"),
    "diversity": Word("diversity of a prompt", 1, "", 1, "1: as different as any two pictures of the data"),
    "memorised_share": Word(
        "suspected copies",
        100,
        "%",
        -1,
        "samples nearer, by pixels, to a training picture than any held-out picture is",
    ),
    "memorised_share_by": Word("suspected copies, {}", 100, "%", -1, "the same, as this network sees it"),
    "nearest_training_distance": Word(
        "distance to the nearest training picture", about="of samples: root mean square over pixels at 32 x 32, of 2"
    ),
    "nearest_training_distance_heldout": Word("the same of held-out pictures", about="for comparison"),
    "bits_per_dim": Word("bits/dim", 1, "", -1, "bound of the negative log-likelihood of held-out pictures"),
    "seconds_per_picture": Word("seconds a picture", 1, "s", -1),
    "parameters": Word("parameters", 1, "", -1),
    "training_seconds": Word("training, all parts", 1, "s", -1),
}
_BY_NETWORK = ("class_score", "coverage", "density", "diversity", "fd", "kid", "precision", "recall",
               "reconstruction_fd")  # fmt: skip


def word(name: str, extractor: str = "") -> Word:
    """What a figure of that name is; `extractor` is the network's name, after which some are named."""
    found = _KNOWN[_root(name)]
    return found._replace(label=found.label.format(extractor))


def _root(name: str) -> str:
    """The name without the network's."""
    if name in _KNOWN:
        return name
    for root in ("memorised_share", "prompt_fidelity_top1"):
        if name.startswith(f"{root}_"):
            return f"{root}_by"
    return next((root for root in _BY_NETWORK if name.startswith(f"{root}_")), name)


def ordered(names: Sequence[str]) -> list[str]:
    """The names in the order in which they are told."""
    known = list(_KNOWN)
    return sorted(names, key=lambda name: known.index(_root(name)))


def value_words(name: str, facts: Mapping[str, Any]) -> str:
    """A figure with its unit, its interval and its mark: "12.4 (11.9 to 12.9)", "83.1 (n<d)"."""
    about, value = word(name), facts["figures"][name]
    unit = f" {about.unit}" if about.unit else ""
    whole = number(int(value)) if name == "parameters" else number(value * about.times)
    notes = []
    if name in facts["intervals"]:
        low, high = (number(end * about.times) for end in facts["intervals"][name])
        notes.append(f"{low} to {high}")
    if name in facts["marks"]:
        notes.append(facts["marks"][name].split(":")[0])
    return f"{whole}{unit}" + (f" ({', '.join(notes)})" if notes else "")


def reference_words(facts: Mapping[str, Any]) -> str:
    """What the distances are to: "1,570 training pictures of emoji"."""
    reference = facts["reference"]
    which = {"train": "training ", "heldout": "held-out ", "all": ""}[reference["split"]]
    folder = str(reference["folder"]).rstrip("/").rsplit("/", 1)[-1]
    return f"{reference['pictures']:,} {which}pictures of {folder}"
